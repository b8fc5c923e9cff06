"use strict";

// Airflow shows this page in a frame of its own origin. Alone in a window, the page has no frame to ask.
const frame = (() => {
  try {
    return window.parent !== window && window.parent.document ? window.parent : null;
  } catch {
    return null;
  }
})();

// The theme that is chosen in Airflow, as it changes; otherwise the system's, by the style sheet.
if (frame) {
  const chosen = frame.document.documentElement;
  const follow = () => {
    const theme = ["dark", "light"].find((name) => chosen.classList.contains(name)) || chosen.dataset.theme;
    if (theme) document.documentElement.dataset.theme = theme;
  };
  follow();
  new MutationObserver(follow).observe(chosen, { attributes: true, attributeFilter: ["class", "data-theme"] });
}

// Airflow's frame opens no windows and lets no link leave it: links out are followed by the frame's owner.
document.addEventListener("click", (event) => {
  const link = event.target.closest("a[data-leave]");
  if (!link || !frame) return;
  event.preventDefault();
  const twin = frame.document.createElement("a");
  twin.href = link.href;
  twin.target = link.dataset.leave === "new" ? "_blank" : "_self";
  twin.rel = "noopener noreferrer";
  frame.document.body.append(twin);
  twin.click();
  twin.remove();
});
