"use strict";
(() => {
  const measure = () => {
    for (const box of document.querySelectorAll(".scroll")) {
      box.classList.toggle("cut", box.scrollWidth > box.clientWidth);
    }
  };
  addEventListener("resize", measure);
  measure();
})();
(() => {
  const form = document.getElementById("filters");
  if (!form) return;
  const field = (name) => document.getElementById(name);
  const entries = [...document.querySelectorAll("#list > details")].map((entry) => ({
    entry,
    suite: entry.dataset.suite,
    flags: entry.dataset.flags,
    text: entry.textContent.toLowerCase(),
  }));
  const asked = {
    changed: (before, after) => before !== "-" && after !== "-" && before !== after,
    gone: (before, after) => before === "1" && after === "0",
    new: (before, after) => before === "0" && after === "1",
    flagged: (before, after) => after === "1",
    all: () => true,
  };
  const update = () => {
    const suite = field("suite").value;
    const [from, to] = [Number(field("from").value), Number(field("to").value)];
    const shows = asked[field("change").value];
    const text = field("text").value.trim().toLowerCase();
    let shown = 0;
    for (const one of entries) {
      const matches =
        (!suite || one.suite === suite) && shows(one.flags[from], one.flags[to]) && one.text.includes(text);
      one.entry.hidden = !matches;
      shown += matches;
    }
    field("count").textContent = `${shown} of ${entries.length} shown`;
  };
  form.addEventListener("input", update);
  form.addEventListener("submit", (event) => event.preventDefault());
  form.hidden = false;
  update();
})();
