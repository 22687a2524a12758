// All of it is a convenience: every page works without it.
"use strict";

// Times are told in UTC; here they become those of the person who looks.
function tellTimes(root) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    const at = new Date(time.dateTime);
    if (!Number.isNaN(at.getTime())) {
      time.title = time.textContent;
      time.textContent = at.toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });
    }
  }
}
tellTimes(document);

// What changes by itself is renewed while it is looked at; where all of a page changes, it is loaded again.
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
        const found = JSON.parse(event.data);
        if (found.reload) location.reload();
        if (!found.html || live.contains(document.activeElement)) return; // not under somebody's hands
        live.innerHTML = found.html;
        tellTimes(live);
      };
    }
  };
  document.addEventListener("visibilitychange", listen);
  listen();
}

// What takes a while says so, and is not sent twice.
for (const form of document.querySelectorAll("form[data-busy]")) {
  form.addEventListener("submit", (event) => {
    if (form.dataset.sent) { event.preventDefault(); return; }
    form.dataset.sent = "yes";
    if (event.submitter) event.submitter.textContent = event.submitter.value === "test" ? "Testing …" : "One moment …";
  });
}
window.addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });

// A password may be suggested; it is seen by the person who asked for it and nobody else.
for (const place of document.querySelectorAll(".suggests")) {
  const field = place.querySelector("input");
  const button = document.createElement("button");
  button.type = "button";
  button.className = "quiet suggest";
  button.textContent = "Suggest one";
  button.addEventListener("click", () => {
    const letters = "abcdefghijkmnpqrstuvwxyzABCDEFGHJKLMNPQRSTUVWXYZ23456789";
    const numbers = crypto.getRandomValues(new Uint32Array(16));
    field.type = "text";
    field.value = Array.from(numbers, (n) => letters[n % letters.length]).join("");
    field.select();
  });
  place.append(button);
}
