// Before the page is drawn: the chosen appearance. Without a choice, or without this script, the system's one is shown.
"use strict";
try {
  const chosen = localStorage.getItem("theme");
  if (chosen) document.documentElement.dataset.theme = chosen;
} catch { /* storage is forbidden: the system's appearance */ }
