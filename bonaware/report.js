
"use strict";
// Finds prompts: those that hold what is searched for and are of the kind that is shown.
// Without it the page still holds everything.
const finder = document.getElementById("finder");
const search = document.getElementById("search");
const show = document.getElementById("show");
const count = document.getElementById("count");
const prompts = [...document.querySelectorAll("#prompts > details")];
const texts = new Map();  // prompt -> its text in lower case, read when it is first needed

function holds(prompt, wanted) {
  if (!texts.has(prompt)) {
    texts.set(prompt, prompt.textContent.toLowerCase());
  }
  return texts.get(prompt).includes(wanted);
}

function update() {
  const wanted = search.value.trim().toLowerCase();
  let found = 0;
  for (const prompt of prompts) {
    const kind = show.value === "all" || prompt.dataset.is.split(" ").includes(show.value);
    prompt.hidden = !(kind && (wanted === "" || holds(prompt, wanted)));
    found += !prompt.hidden;
  }
  count.textContent = `${found} of ${prompts.length} prompts`;
}

finder.hidden = false;
finder.addEventListener("submit", (event) => event.preventDefault());
search.addEventListener("input", update);
show.addEventListener("change", update);
update();
