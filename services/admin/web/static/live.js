// Conveniences only: every page works without this script.
"use strict";

// What the scripts say, in the language of the page; and the user's own kind of that language, for times.
const texts = JSON.parse(document.body.dataset.texts);
const language = document.documentElement.lang;
const locale = navigator.languages.find((each) => each.split("-")[0] === language.split("-")[0]) || language;

// Shows the times of the page, which are UTC, in the time zone of the browser; without the year if it is this one.
const thisYear = new Date().getFullYear();
const shortTime = (at) => at.toLocaleString(locale, {
  day: "numeric", month: "short", year: at.getFullYear() === thisYear ? undefined : "numeric", hour: "2-digit", minute: "2-digit",
});
const hourOf = (at) => at.toLocaleTimeString(locale, { hour: "2-digit", minute: "2-digit" });
function localizeTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) continue;
    if ("since" in time.dataset) {
      time.title = shortTime(at);
    } else {
      time.title = time.textContent;
      time.textContent = shortTime(at);
    }
  }
  for (const label of root.querySelectorAll("svg [data-hour]")) {
    const at = new Date(label.dataset.hour);
    if (label.localName === "title") {
      label.textContent = label.textContent.replace(/^.*? UTC/, hourOf(at));
    } else {
      label.textContent = hourOf(at);
      label.setAttribute("class", at.getHours() % 3 ? "off" : at.getHours() % 6 ? "between" : "");
    }
  }
  for (const place of root.querySelectorAll("[data-zone]")) place.textContent = texts.times;
}
localizeTimes(document);

// Updates the live part of a page while the page is visible; reloads the page where all of it changes.
const live = document.querySelector("[data-live]");
if (live) {
  let source = null;
  const listen = () => {
    if (document.hidden) {
      if (source) source.close();
      source = null;
    } else if (!source) {
      source = new EventSource(live.dataset.live);
      source.onmessage = (event) => {
        const update = JSON.parse(event.data);
        if (update.reload) location.reload();
        if (!update.html || live.contains(document.activeElement)) return; // the user is working in it
        live.innerHTML = update.html;
        localizeTimes(live);
      };
    }
  };
  document.addEventListener("visibilitychange", listen);
  listen();
}

// Shows that a slow form was sent, and prevents a second submission.
for (const form of document.querySelectorAll("form[data-busy]")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) { event.preventDefault(); return; }
    form.dataset.sent = "yes";
    if (event.submitter) event.submitter.textContent = event.submitter.value === "test" ? texts.testing : texts.busy;
  });
}
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

// Shows the usual port of the chosen encryption, unless another port was typed.
for (const choice of document.querySelectorAll("select[data-ports]")) {
  const usual = JSON.parse(choice.dataset.ports);
  const [port, shown] = ["port", "shown_tls"].map((name) => document.getElementById(choice.id.replace(/tls$/, name)));
  choice.addEventListener("change", () => {
    if (["", String(usual[shown.value])].includes(port.value.trim())) port.value = usual[choice.value];
    shown.value = choice.value;
  });
}

// Suggests a password, generated in the browser.
for (const place of document.querySelectorAll(".suggests")) {
  const field = place.querySelector("input");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet suggest";
  button.textContent = texts.suggest;
  button.addEventListener("click", () => {
    const letters = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    const numbers = crypto.getRandomValues(new Uint32Array(16));
    const password = Array.from(numbers, (n) => letters[n % letters.length]).join("");
    for (const each of [field, document.getElementById(place.dataset.again)]) {
      if (!each) continue;
      each.type = "text"; // the user has to see it, to tell it to its owner
      each.value = password;
    }
    field.select();
  });
  place.append(button);
}
