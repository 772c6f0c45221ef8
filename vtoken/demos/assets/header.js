// The system decides between light and dark until the button does.
document.body.style.backgroundColor = "var(--body-background-fill)";
element.querySelector(".vt-theme").addEventListener("click", () => document.body.classList.toggle("dark"));
