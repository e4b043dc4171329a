"use strict";
// Filters the answers side by side. It only hides and shows what the page already holds, so traffic
// is never parsed again. What is chosen stands in the address, where other parts of the page link to.
{
  const STEP = 20;
  const form = document.getElementById("filters");
  const cases = Array.from(document.querySelectorAll("#cases > .case"));
  const more = document.getElementById("more");
  const told = document.getElementById("told");
  const texts = new Map();
  let limit = STEP;

  const textOf = (item) => {
    if (!texts.has(item)) texts.set(item, item.textContent.toLowerCase());
    return texts.get(item);
  };
  const fits = (item, { trial, kind, group, text }) =>
    (!trial || item.dataset.trial === trial) &&
    (!kind || item.dataset.kinds.split(" ").includes(kind)) &&
    (!group || item.dataset.group === group) &&
    text.toLowerCase().split(/\s+/).every((word) => textOf(item).includes(word));

  const show = () => {
    const wanted = Object.fromEntries(new FormData(form));
    const found = cases.filter((item) => fits(item, wanted));
    const shown = new Set(found.slice(0, limit));
    for (const item of cases) item.hidden = !shown.has(item);
    told.textContent = `${shown.size} of ${found.length} found`;
    more.hidden = shown.size === found.length;
  };
  const changed = () => {
    limit = STEP;
    show();
    const chosen = [...new FormData(form)].filter(([, value]) => value);
    history.replaceState(null, "", `#answers?${new URLSearchParams(chosen)}`);
  };
  const follow = () => {
    const [place, query] = location.hash.slice(1).split("?");
    if (place !== "answers" || query === undefined) return;
    const chosen = new URLSearchParams(query);
    for (const field of form.elements) field.value = chosen.get(field.name) ?? "";
    limit = STEP;
    show();
    document.getElementById("answers").scrollIntoView();
  };

  if (form) {
    form.hidden = false;
    for (const event of ["input", "change"]) form.addEventListener(event, changed);
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => { limit += STEP; show(); });
    addEventListener("hashchange", follow);
    show();
    follow();
  }
}
