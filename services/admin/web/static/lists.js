// Conveniences of lists: search while typing, copy, toasts that close, and the choice of light or dark.
"use strict";

// The day of a search is one of the browser's time zone.
const zone = document.querySelector("form [name=zone]");
if (zone) zone.value = Intl.DateTimeFormat().resolvedOptions().timeZone || "";

// Searches while the user types: the results of the same page replace those that are shown.
const TYPING_MS = 250; // a pause that ends a word: milliseconds
for (const form of document.querySelectorAll("form[data-results]")) {
  let timer = 0;
  let latest = null;
  const search = async () => {
    if (latest) latest.abort();
    const request = latest = new AbortController();
    const shown = document.getElementById("results");
    shown.setAttribute("aria-busy", "true");
    try {
      const answer = await fetch(`${form.action}?${new URLSearchParams(new FormData(form))}`, { signal: request.signal });
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      const found = page.getElementById("results");
      if (!answer.ok || !found) return; // Enter shows what is wrong
      shown.replaceChildren(...found.childNodes);
      localizeTimes(shown);
    } catch { /* the next letter, or Enter, tries again */ } finally {
      if (latest === request) shown.removeAttribute("aria-busy");
    }
  };
  const later = () => { clearTimeout(timer); timer = setTimeout(search, TYPING_MS); };
  if (document.getElementById("results")) form.addEventListener("input", later);
  form.addEventListener("submit", () => { clearTimeout(timer); if (latest) latest.abort(); });
}

const drawing = (path) => `<svg class="icon" viewBox="0 0 16 16" aria-hidden="true"><path d="${path}"/></svg>`;

// Copies the text of a field that may be cut, with a button that appears under the mouse.
const copy = document.createElement("button");
copy.type = "button";
copy.className = "copy-button";
copy.tabIndex = -1;
copy.title = texts.copy;
copy.setAttribute("aria-label", texts.copy);
copy.innerHTML = drawing("M5.5 5.5h8v8h-8zM3.5 10.5h-1v-8h8v1");
document.addEventListener("mouseover", (event) => {
  const field = event.target.closest(".copy");
  if (copy.contains(event.target)) return;
  if (field && field.title && navigator.clipboard) field.append(copy); else copy.remove();
});
copy.addEventListener("click", async (event) => {
  event.preventDefault();
  await navigator.clipboard.writeText(copy.parentElement.title);
  copy.remove();
});
for (const button of document.querySelectorAll("button[data-copies]")) {
  button.hidden = !navigator.clipboard;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).textContent);
    button.textContent = texts.copied;
  });
}

// A toast stays until it is closed, or until the next page.
for (const toast of document.querySelectorAll(".toast")) {
  const close = document.createElement("button");
  close.type = "button";
  close.setAttribute("aria-label", texts.close);
  close.innerHTML = drawing("M4 4l8 8M12 4l-8 8");
  close.addEventListener("click", () => toast.remove());
  toast.append(close);
}

// Light or dark: as the system has it, unless this browser chose another one.
const place = document.getElementById("theme");
if (place) {
  const choices = { "": texts.system, light: texts.light, dark: texts.dark };
  const button = document.createElement("button");
  const show = () => { button.textContent = choices[document.documentElement.dataset.theme || ""]; };
  button.type = "button";
  button.className = "quiet";
  button.addEventListener("click", () => {
    const names = Object.keys(choices);
    const next = names[(names.indexOf(document.documentElement.dataset.theme || "") + 1) % names.length];
    if (next) document.documentElement.dataset.theme = next; else delete document.documentElement.dataset.theme;
    try { if (next) localStorage.setItem("theme", next); else localStorage.removeItem("theme"); } catch { /* as above */ }
    show();
  });
  show();
  place.append(button);
}
