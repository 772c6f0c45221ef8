element.addEventListener("click", (event) => {
  if (event.target.closest(".vt-close")) element.querySelector(".vt-notice").remove();
});
