// A clip that this browser cannot play is shown by a frame of it, without a message that it is not playable.
const video = () => document.querySelector("#vt-video video");
const isClip = (event) => event.target.matches && event.target.matches("#vt-video video");
function dress() {
  const frame = element.querySelector("[data-poster]"), shown = video();
  const fails = Boolean(shown && shown.error);
  element.classList.toggle("vt-unplayable", fails);
  if (fails && frame) shown.poster = frame.dataset.poster;
  else if (shown) shown.removeAttribute("poster"); // it would stay in front of the clip until that is played
}
document.addEventListener("loadstart", (event) => { if (isClip(event)) dress(); }, true);
document.addEventListener("error", (event) => {
  if (!isClip(event)) return;
  event.stopImmediatePropagation(); // before Gradio's own listener, which shows "Video not playable"
  dress();
}, true);
new MutationObserver(dress).observe(element, { childList: true, subtree: true });
