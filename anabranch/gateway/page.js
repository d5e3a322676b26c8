// Without this script, the page is as it was loaded.
"use strict";
const pause = document.getElementById("pause");
const live = document.getElementById("live");
pause.closest("p").hidden = false;
async function update() {
  if (pause.checked || document.hidden) return;
  try {
    const answer = await fetch("live", { credentials: "same-origin" });
    const text = await answer.text();
    if (answer.ok && live.innerHTML !== text) live.innerHTML = text;
  } catch {
    const gone = document.createElement("p");
    gone.className = "bad";
    gone.textContent = "The gateway does not answer.";
    live.replaceChildren(gone);
  }
}
setInterval(update, 3000);
