// What the page shows, and how it takes files.
"use strict";

const facts = JSON.parse(document.getElementById("facts").textContent);
const byId = (id) => document.getElementById(id);
// Pixels, as in boneage_jax/data/notes.py.
const TINY_SIDE = Math.max(40, Math.ceil(0.27 * Number(facts.image_size)));
const loading = Model.load(facts);
let queue = loading; // one file after the other

const make = (tag, text = "", attributes = {}) => {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
};
const say = (text) => (byId("status").textContent = text);

function inWords(months) {
  const whole = Math.round(months), years = Math.floor(whole / 12), rest = whole % 12;
  const count = (number, unit) => `${number} ${unit}${number === 1 ? "" : "s"}`;
  return `${count(years, "year")} ${count(rest, "month")}`;
}

function chosenSex(fromFile) {
  const chosen = document.querySelector("input[name=sex]:checked").value;
  return chosen === "file" ? fromFile : Number(chosen);
}

async function readFile(file) {
  const article = make("article", "", { tabindex: "-1", "aria-busy": "true" });
  article.append(make("h3", file.name));
  byId("results").prepend(article);
  say(`Reading ${file.name}`);
  try {
    const radiograph = await readRadiograph(new Uint8Array(await file.arrayBuffer()));
    const model = await loading, male = chosenSex(radiograph.sex);
    const { image, notes } = model.view ? model.view.putRight(radiograph, model.size) : { image: radiograph, notes: [] };
    const square = fitSquare(image, model.size, facts.fit).data;
    const [found] = await model.read([square], male);
    const tiny = Math.min(radiograph.width, radiograph.height) < TINY_SIDE;
    const seen = model.view && !tiny ? model.view.judge(square, model.size) : "";
    const reason = !("accepted" in found) ? "" : tiny ? `under ${TINY_SIDE} px on its short side: too small` : seen;
    if (reason) found.accepted = 0;
    show(article, found, [...radiograph.notes, ...notes, ...(reason ? [reason] : [])], male, square, model);
    const accepted = found.accepted === 0 ? ". It is unlike the radiographs of training" : "";
    say(`${file.name}: bone age ${inWords(found.bone_age_months)}${accepted}`);
  } catch (error) {
    const reason = error instanceof UnreadableImage ? error.message : `the page failed: ${error.message || error}`;
    article.append(make("p", `Not read: ${reason}.`, { class: "refused" }));
    say(`${file.name} was not read: ${reason}`);
  }
  article.setAttribute("aria-busy", "false");
}

function show(article, found, notes, male, square, model) {
  if (found.accepted === 0) {
    article.append(
      make("p", "This does not look like the hand radiographs of training. Do not use the age.", { class: "refused" }),
    );
  }
  const age = make("p", inWords(found.bone_age_months), { class: "age" });
  age.dataset.months = found.bone_age_months;
  age.dataset.accepted = found.accepted ?? "";
  const accepted = { 0: "no", 1: "yes" }[found.accepted] ?? "not known: too few images in training";
  const sexes = { 1: "male", 0: "female", [-1]: "not known" };
  const estimate = `male with probability ${Math.round(100 * found.p_male)} %`;
  const rows = [
    ["Bone age", `${found.bone_age_months.toFixed(1)} months`],
    ["95 % interval", `${found.low_months.toFixed(1)} to ${found.high_months.toFixed(1)} months`],
    ["Accepted as a hand radiograph", accepted],
    ["Sex used", model.session.inputNames.includes("male") ? sexes[male] : "none: this network takes no sex"],
    ["Sex as the network sees it", estimate],
    ...notes.map((note) => ["Note on the file", note]),
  ];
  const list = make("dl");
  for (const [term, text] of rows) list.append(make("dt", term), make("dd", text));
  const figure = make("figure"), stack = make("div", "", { class: "stack" });
  const label = "The radiograph as the network sees it";
  const picture = make("canvas", "", { width: model.size, height: model.size, role: "img", "aria-label": label });
  const context = picture.getContext("2d"), pixels = context.createImageData(model.size, model.size);
  square.forEach((value, at) => pixels.data.set([value, value, value, 255], 4 * at));
  context.putImageData(pixels, 0, 0);
  stack.append(picture);
  const caption = make("figcaption", `${label}.`);
  figure.append(stack, caption);
  if (found.contributions) {
    stack.append(heatMap(found.contributions));
    caption.textContent += ` ${inHeatWords(found.contributions)}`;
    article.dataset.heat = "done";
  }
  article.append(age, list, figure);
}

/** Which places move the age: Grad-CAM, as in `predict --report`, with the direction as the colour. */
function heatMap({ rows, columns, months }) {
  const most = Math.max(...months.map(Math.abs), 1e-6);
  const map = make("canvas", "", { width: columns, height: rows, class: "heat", "aria-hidden": "true" });
  const context = map.getContext("2d"), pixels = context.createImageData(columns, rows);
  months.forEach((value, at) => {
    const colour = value < 0 ? [230, 97, 1] : [64, 120, 230]; // told apart by all colour-blind people
    pixels.data.set([...colour, Math.round((200 * Math.abs(value)) / most)], 4 * at);
  });
  context.putImageData(pixels, 0, 0);
  return map;
}

function inHeatWords({ rows, columns, months }) {
  const at = months.reduce((best, value, n) => (Math.abs(value) > Math.abs(months[best]) ? n : best), 0);
  const where = (place, count, names) => names[Math.min(2, Math.floor((3 * (place + 0.5)) / count))];
  const row = where(Math.floor(at / columns), rows, ["upper", "middle", "lower"]);
  const column = where(at % columns, columns, ["left", "centre", "right"]);
  const direction = months[at] < 0 ? "younger" : "older";
  return (
    "Heat map (Grad-CAM): places that speak for a younger age are orange, for an older one blue, compared with " +
    `the mean of all places. Strongest in the ${row} ${column}, by ${Math.abs(months[at]).toFixed(1)} months ${direction}. ` +
    "It shows what the age depends on, not whether it is right."
  );
}

function take(files) {
  for (const file of files) queue = queue.then(() => readFile(file), () => undefined);
}

byId("files").addEventListener("change", (event) => {
  take([...event.target.files]);
  event.target.value = ""; // the same file may be chosen again
});
for (const kind of ["dragenter", "dragover"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    byId("drop").classList.add("over");
  });
}
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) byId("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  byId("drop").classList.remove("over");
  take([...event.dataTransfer.files]);
});
byId("clear").addEventListener("click", () => {
  byId("results").replaceChildren();
  say("Cleared.");
});
loading.then(
  () => {
    say("Ready.");
    document.body.dataset.state = "ready";
  },
  (error) => {
    say(`This browser cannot run the network: ${error.message || error}`);
    document.body.dataset.state = "failed";
  },
);
