
"use strict";
// Finds and sorts prompts and samples. Without it the page still holds everything.
const finder = document.getElementById("finder");
const search = document.getElementById("search");
const show = document.getElementById("show");
const sort = document.getElementById("sort");
const rising = document.getElementById("rising");
const count = document.getElementById("count");
const list = document.getElementById("prompts");
const prompts = [...list.children];  // as drawn
const samples = new Map(prompts.map((prompt) => [prompt, [...prompt.lastElementChild.children]]));
const texts = new Map();  // element -> its text in lower case, read when it is first needed

function holds(element, wanted) {
  if (!texts.has(element)) {
    texts.set(element, element.textContent.toLowerCase());
  }
  return texts.get(element).includes(wanted);
}

// Hides the samples that do not hold what is wanted, unless the prompt does; whether any is left.
function find(prompt, wanted) {
  const own = [...prompt.children].slice(0, -1).some((part) => holds(part, wanted));
  let found = own;
  for (const sample of samples.get(prompt)) {
    sample.hidden = !own && !holds(sample, wanted);
    found ||= !sample.hidden;
  }
  return found;
}

function update() {
  const wanted = search.value.trim().toLowerCase();
  let found = 0;
  for (const prompt of prompts) {
    const kind = show.value === "all" || prompt.dataset.is.split(" ").includes(show.value);
    prompt.hidden = !(kind && find(prompt, wanted));
    found += !prompt.hidden;
  }
  count.textContent = `${found} of ${prompts.length} prompts`;
}

// Elements by one of the numbers of data-by; those without it last, equal ones as drawn.
function sorted(elements) {
  if (sort.value === "") {
    return rising.checked ? [...elements].reverse() : elements;
  }
  const value = (element) => Number(element.dataset.by.split(" ")[sort.value]);
  const keys = new Map(elements.map((element) => [element, value(element)]));
  const sign = rising.checked ? 1 : -1;
  return [...elements].sort((one, other) => {
    const [a, b] = [keys.get(one), keys.get(other)];
    return Number.isNaN(a) - Number.isNaN(b) || sign * (a - b) || 0;
  });
}

function order() {
  for (const [prompt, own] of samples) {
    prompt.lastElementChild.append(...sorted(own));
  }
  list.append(...sorted(prompts));
}

// The next prompt that is shown, after or before an element of the list.
function next(prompt, forward) {
  do {
    prompt = forward ? prompt.nextElementSibling : prompt.previousElementSibling;
  } while (prompt && prompt.hidden);
  return prompt;
}

function pressed(event) {
  const typing = event.target.matches("input, select");
  const prompt = event.target.closest("#prompts > details");
  let to = null;
  if (event.key === "/" && !typing) {
    to = search;
  } else if (event.key === "ArrowDown" && event.target === search) {
    to = [...list.children].find((each) => !each.hidden)?.firstElementChild;
  } else if (event.key === "ArrowDown" && prompt) {
    to = next(prompt, true)?.firstElementChild;
  } else if (event.key === "ArrowUp" && prompt) {
    to = next(prompt, false)?.firstElementChild ?? search;
  }
  if (to) {
    event.preventDefault();
    to.focus();
  }
}

finder.hidden = false;
finder.addEventListener("submit", (event) => event.preventDefault());
search.addEventListener("input", update);
show.addEventListener("change", update);
sort.addEventListener("change", order);
rising.addEventListener("change", order);
document.addEventListener("keydown", pressed);
update();
