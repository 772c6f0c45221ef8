// Buttons made by the server: a click tells which one it was.
element.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-value]");
  if (button) trigger("select", { value: button.dataset.value });
});
