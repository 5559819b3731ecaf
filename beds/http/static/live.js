// Replaces the parts of a page that have changed. The server sends them as HTML, so nothing is drawn twice.
const address = document.body.dataset.stream;
let source = null;

function replace(event) {
  for (const [id, html] of Object.entries(JSON.parse(event.data))) {
    const part = document.getElementById(id);
    // A part in which somebody is about to press a button stays as it is until the next change.
    if (part && !(part.contains(document.activeElement) && document.activeElement !== part)) part.innerHTML = html;
  }
}

function follow() {
  source?.close();
  source = null;
  if (document.hidden) return; // a hidden page needs no stream, of which a browser has few
  source = new EventSource(address);
  source.addEventListener("parts", replace);
}

document.addEventListener("visibilitychange", follow);
follow();
