// What the pages of play and teach have in common; the server puts it into each.
const $ = id => document.getElementById(id);
const TOUCH = matchMedia("(hover: none)");
const SHOWN = { ArrowUp: "↑", ArrowDown: "↓", ArrowLeft: "←", ArrowRight: "→", " ": "Space" };

let fading;
function toast(text) {
  $("toast").textContent = text; $("toast").hidden = false;
  clearTimeout(fading);
  fading = setTimeout(() => { $("toast").hidden = true; }, 5000);
}
