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

/** The letter or digit that is at a key's place on a US keyboard; null for other keys. */
function placed({ code }) { return /^(Key|Digit)(.)$/.exec(code)?.[2].toLowerCase() ?? null; }

/** What a person's own keyboard has at the place of a letter of WASD; known in some browsers, in others the letter. */
let layout = null;
function letterAt(letter) { return layout?.get(`Key${letter.toUpperCase()}`) ?? letter; }
function readLayout(then) {
  navigator.keyboard?.getLayoutMap?.().then(found => { layout = found; then(); }, () => {});
}
