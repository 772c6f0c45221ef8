// The system decides between light and dark until the button does.
element.querySelector(".vt-theme").addEventListener("click", () => document.body.classList.toggle("dark"));
