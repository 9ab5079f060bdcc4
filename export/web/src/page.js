// The page: takes a photograph or a compressed file, asks the worker, shows what came back.

await isolate();

const $ = (id) => document.getElementById(id);
const worker = new Worker("worker.js", { type: "module" });
const asked = new Map();
let codecs = [], last = null, original = null, turn = 0;

worker.onmessage = ({ data: { id, ...answer } }) => {
  const { resolve, reject } = asked.get(id);
  asked.delete(id);
  if (answer.error) reject(new Error(answer.error));
  else resolve(answer);
};
worker.onerror = () => say("This browser cannot run the codec.", true);

/** Loads the page once more under isolate.js, which lets it use several threads; without it, it uses one. */
async function isolate() {
  if (crossOriginIsolated || !navigator.serviceWorker || sessionStorage.isolate) return;
  sessionStorage.isolate = "tried";
  try {
    await navigator.serviceWorker.register("isolate.js");
    await navigator.serviceWorker.ready;
  } catch {
    return;
  }
  location.reload();
  await new Promise(() => {}); // nothing more happens before the page is loaded anew
}

function ask(task, given) {
  const id = asked.size ? Math.max(...asked.keys()) + 1 : 0;
  return new Promise((resolve, reject) => {
    asked.set(id, { resolve, reject });
    worker.postMessage({ id, task, description: codecs[$("codec").selectedIndex], ...given });
  });
}

function say(words, isWrong = false) {
  $("state").textContent = words;
  $("state").classList.toggle("wrong", isWrong);
}

/** A photograph as upright pixels on white: {width, height, data}. */
async function pixelsOf(file) {
  const bitmap = await createImageBitmap(file, { imageOrientation: "from-image" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height), context = canvas.getContext("2d");
  context.fillStyle = "#fff";
  context.fillRect(0, 0, bitmap.width, bitmap.height);
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, bitmap.width, bitmap.height);
}

async function isCompressed(file) {
  const start = new Uint8Array(await file.slice(0, 3).arrayBuffer());
  return String.fromCharCode(...start) === "NIC";
}

function psnr(a, b) {
  let sum = 0;
  for (let i = 0; i < a.length; i++) sum += (a[i] - b[i]) ** 2; // alpha is 255 in both
  return sum ? 10 * Math.log10((255 ** 2 * (3 / 4) * a.length) / sum) : Infinity;
}

function paint(canvas, { width, height, data }) {
  Object.assign(canvas, { width, height });
  canvas.getContext("2d").putImageData(new ImageData(new Uint8ClampedArray(data), width, height), 0, 0);
}

function show(name, file, decoded, seconds) {
  paint($("decoded"), decoded);
  paint($("original"), original ?? decoded);
  $("figure").style.setProperty("--width", `${decoded.width}px`);
  $("size").textContent = `${decoded.width} × ${decoded.height}`;
  $("bytes").textContent = `${file.length.toLocaleString("en")} bytes`;
  $("bpp").textContent = ((8 * file.length) / (decoded.width * decoded.height)).toFixed(3);
  $("psnr").textContent = original ? `${psnr(original.data, decoded.data).toFixed(2)} dB` : "";
  $("quality").hidden = $("split").hidden = $("original").hidden = $("names").hidden = !original;
  $("seconds").textContent = seconds.map((each) => `${each.toFixed(2)} s`).join(", ");
  URL.revokeObjectURL($("download").href);
  $("download").href = URL.createObjectURL(new Blob([file], { type: "application/octet-stream" }));
  $("download").download = `${name.replace(/\.[^.]*$/, "")}.bin`;
  $("result").hidden = false;
}

/** Does what a change asks for, unless another one comes meanwhile; shows errors. */
async function guarded(what) {
  const own = ++turn;
  try {
    const found = await what();
    if (own !== turn) return;
    show(last.name, ...found);
    say("");
  } catch (error) {
    if (own === turn) say(`${last.name}: ${error.message}`, true);
  }
}

async function opened() {
  say("Loading the codec …");
  const { most } = await ask("open", {});
  if (+$("rate").max !== most) Object.assign($("rate"), { max: most, value: most });
  $("rates").hidden = !most || !original;
}

async function coded(seconds) {
  say("Encoding …");
  const answer = await ask("encode", { rate: +$("rate").value });
  return decoded(answer.file, [seconds + answer.seconds]);
}

async function decoded(file, seconds) {
  say("Decoding …");
  const answer = await ask("decode", { file });
  return [file, answer.picture, [...seconds, answer.seconds]];
}

async function process(source) {
  last = source;
  $("result").hidden = true;
  await guarded(async () => {
    original = null;
    if (await isCompressed(source)) {
      await opened();
      return decoded(new Uint8Array(await source.arrayBuffer()), []);
    }
    say("Reading the photograph …");
    original = await pixelsOf(source).catch(() => {
      throw new Error("no picture that this browser opens.");
    });
    await opened();
    say("Encoding …");
    const { width, height, data } = original;
    const answer = await ask("analyse", { picture: { width, height, data } });
    return coded(answer.seconds);
  });
}

$("file").onchange = ({ target }) => target.files[0] && process(target.files[0]);
$("codec").onchange = () => last && process(last);
$("rate").onchange = () => guarded(() => coded(0));
$("split").oninput = ({ target }) => $("stage").style.setProperty("--split", `${target.value}%`);
for (const kind of ["dragover", "dragleave", "drop"])
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", kind === "dragover");
    if (kind === "drop" && event.dataTransfer.files[0]) process(event.dataTransfer.files[0]);
  });

const answer = await fetch("codecs.json");
codecs = answer.ok ? await answer.json() : [];
for (const { name } of codecs) $("codec").add(new Option(name));
$("choice").hidden = codecs.length < 2;
if (!codecs.length) say("codecs.json is missing: python -m export.web writes it.", true);
