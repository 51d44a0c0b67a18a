// What the page does beyond links and forms: it shows and hides the key in place, and copies.
"use strict";

const live = document.getElementById("status");
const shown = document.getElementById("key");
const reveal = document.getElementById("reveal");

// announce shows the effect of a button, and screen readers read it out.
let silence;
function announce(text) {
  live.textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => { live.textContent = ""; }, 6000);
}

// readKey asks for the key, as the form does. It is not part of the page, and not kept.
async function readKey() {
  const response = await fetch(reveal.form.action, {
    method: "POST", headers: { Accept: "application/json" }, credentials: "same-origin", cache: "no-store",
  });
  if (!response.ok) throw new Error(String(response.status));
  return (await response.json()).key;
}

function show(key) {
  const open = key !== undefined;
  shown.textContent = open ? key : shown.dataset.masked;
  shown.setAttribute("aria-label", open ? shown.dataset.labelShown : shown.dataset.labelHidden);
  reveal.toggleAttribute("data-open", open);
  reveal.textContent = open ? reveal.dataset.hide : reveal.dataset.reveal;
  announce(open ? reveal.dataset.shown : reveal.dataset.hidden);
}

reveal?.form.addEventListener("submit", async (event) => {
  event.preventDefault();
  if (reveal.hasAttribute("data-open")) {
    show(undefined);
    return;
  }
  reveal.disabled = true;
  try {
    show(await readKey());
  } catch {
    announce(reveal.dataset.failed);
  } finally {
    reveal.disabled = false;
  }
});

// textOf returns what a button copies; a key that is hidden is asked for, and stays hidden.
async function textOf(id) {
  if (id === "key" && !reveal.hasAttribute("data-open")) return readKey();
  return document.getElementById(id).textContent;
}

for (const button of document.querySelectorAll("button.copy")) {
  button.hidden = false;
  button.addEventListener("click", async () => {
    try {
      await navigator.clipboard.writeText(await textOf(button.dataset.copy));
      announce(button.dataset.copied);
    } catch {
      announce(button.dataset.failed);
    }
  });
}

// A key that is shown does not stay on a screen that nobody looks at, nor in the memory of the browser's
// back button.
window.addEventListener("pagehide", () => { if (reveal?.hasAttribute("data-open")) show(undefined); });
