// A world in the browser: it computes what the server of `minigenie play` does, and says the same things to the page.
"use strict";
const FRAME = 0, PREVIEW = 1, RGBA = 0, JPEG = 1, NO_ACTION = 0xffff, HEADER_BYTES = 24;
const PAST_BYTES = 64 << 20, PAST_MOMENTS = 200, MOST_STEPS = 64;
const COLDEST = 1e-6;  // the temperature at which the likeliest is taken: the graphs divide by it

let ort, about, graphs = {}, random;
const player = { start: null, startIndex: 0, picture: null, state: null, action: null, number: 0, past: [], seed: 0,
  paused: false, held: null, tapped: null, single: undefined, redraw: false, serial: 0, acknowledged: 0 };
const jobs = [];  // what changes the state, done one after another, between two frames

const tell = message => postMessage(JSON.stringify(message));

// ---- loading --------------------------------------------------------------------------------------------------------

async function read(path, watch = () => {}, options = {}) {
  const answer = await fetch(path, options);
  if (!answer.ok) throw new Error(`${path} is not there (${answer.status}); copy the whole folder again`);
  const whole = new Uint8Array(+answer.headers.get("content-length") || 0), parts = [];
  let done = 0;
  for (const reader = answer.body.getReader(); ;) {
    const { value } = await reader.read();
    if (!value) break;
    parts.push(value); done += value.length;
    watch(value.length);
  }
  const all = whole.length === done ? whole : new Uint8Array(done);
  parts.reduce((at, part) => { all.set(part, at); return at + part.length; }, 0);
  return all;
}

/** bfloat16 as float32: the upper half of its bits. */
function widened(bytes) {
  const halves = new Uint16Array(bytes.buffer, bytes.byteOffset, bytes.length / 2), wide = new Uint32Array(halves.length);
  for (let i = 0; i < halves.length; i++) wide[i] = halves[i] << 16;
  return new Uint8Array(wide.buffer);
}

/** What a page without a network, or with another file there, is told. */
const unreachable = error => { throw new Error(`its engine cannot be fetched from ${about.runtime.base} (${error.message}); export it again with --runtime`); };

const asked = name => new URL(location.href).searchParams.get(name);

async function loadRuntime(provider) {
  const { module, wasm } = about.runtime[provider], from = file => new URL(file.name, new URL(about.runtime.base, location.href)).href;
  const options = file => ({ integrity: file.integrity, mode: "cors", credentials: "omit" });
  const code = await read(from(module), undefined, options(module)).catch(unreachable);
  const found = await import(URL.createObjectURL(new Blob([code], { type: "text/javascript" })));
  found.env.wasm.wasmBinary = await read(from(wasm), undefined, options(wasm)).catch(unreachable);
  found.env.logLevel = "error";
  found.env.wasm.numThreads = self.crossOriginIsolated ? +asked("threads") || Math.min(4, navigator.hardwareConcurrency || 1) : 1;
  return found;
}

let loaded = 0;
function progress() {
  return bytes => { loaded += bytes; tell({ type: "loading", share: Math.min(1, loaded / about.bytes) }); };
}

async function provider() {
  if (asked("provider")) return asked("provider");
  const adapter = await navigator.gpu?.requestAdapter?.().catch(() => null);
  return adapter && !(adapter.info ?? adapter).isFallbackAdapter ? "webgpu" : "wasm";
}

async function load() {
  about = JSON.parse(new TextDecoder().decode(await read("world.json")));
  const where = await provider();
  ort = await loadRuntime(where);
  const wide = widened(await read("weights.bf16", progress())), rest = await read("weights.bin", progress());
  for (const name of about.graphs) {
    const externalData = [{ path: "weights.bf16", data: wide }, { path: "weights.bin", data: rest }];
    graphs[name] = await ort.InferenceSession.create(await read(`${name}.onnx`, progress()), { executionProviders: [where],
      graphOptimizationLevel: "all", externalData, ...(where === "webgpu" && { preferredOutputLocation: "gpu-buffer" }) });
  }
  tell({ type: "hello", ...about.hello });
  tell({ type: "actions", actions: about.actions, noop: Math.max(0, about.actions.findIndex(entry => entry.noop)) });
  Object.assign(player, { steps: about.sampling.steps, temperature: about.sampling.temperature });
  if (about.hello.starts) await begin(0); else sendState();
  play();
}

// ---- the world ------------------------------------------------------------------------------------------------------

const tensor = (type, values, shape = [values.length]) => new ort.Tensor(type, values, shape);
const integer = value => BigInt(value);

async function run(name, named) {
  const inputs = graphs[name].inputNames, feeds = {};
  for (const input of inputs) feeds[input] = named[input];
  const found = await graphs[name].run(feeds);
  return graphs[name].outputNames.map(output => found[output]);
}

const numbered = (name, tensors) => Object.fromEntries(tensors.map((each, i) => [`${name}_${i}`, each]));

/** Random numbers in [0, 1): sfc32. */
function generator(seed) {
  let [a, b, c, d] = [0, 0, seed >>> 0, 1];
  const next = () => {
    const sum = (a + b + d++) | 0;
    a = b ^ (b >>> 9); b = (c + (c << 3)) | 0; c = ((c << 21) | (c >>> 11)) + sum | 0;
    return (sum >>> 0) / 4294967296;
  };
  for (let i = 0; i < 12; i++) next();
  return next;
}

function uniform(shape) {
  return tensor("float32", Float32Array.from({ length: shape.reduce((a, b) => a * b) }, random), shape);
}

/** As minigenie.maskgit.schedule: how many patches are filled in after each step, and the noise that is left. */
function schedule(steps, n) {
  const most = Math.min(steps, n);
  return Array.from({ length: most }, (_, i) => {
    const share = (i + 1) / most;
    const keep = i + 1 === most ? n : Math.max(i + 1, n - Math.floor(n * Math.cos(Math.PI / 2 * share)));
    return { keep, noise: player.temperature ? (1 - share) * about.sampling.choice_noise : 0 };
  });
}

async function beginState(picture) {
  const [height, width] = [about.hello.height, about.hello.width];
  return run("begin", { picture: tensor("uint8", picture, [height, width, 3]) });
}

/** The next frame, uint8 [h w 3], how sure the world was of its tokens, 0 to 1, whether it is the last (1; 2: and won), and the state after it. */
async function imagine(action, state) {
  const before = numbered("state", state), n = about.num_patches;
  const temperature = tensor("float32", [Math.max(player.temperature, COLDEST)], []);
  const chosen = tensor("int64", [integer(action)]);
  const given = numbered("given", about.graphs.includes("give")
    ? await run("give", { action: chosen, ...before }) : [chosen]);
  let tokens = tensor("int64", new BigInt64Array(n).fill(integer(about.mask_id)), [1, n]), sure = tensor("float32", new Float32Array(n), [1, n]);
  for (const { keep, noise } of schedule(player.steps, n)) {
    [tokens, sure] = await run("fill", { ...given, tokens, sure, uniform: uniform([2, 1, n]), keep: tensor("int64", [integer(keep)], []),
      noise: tensor("float32", [noise], []), temperature, ...before });
  }
  const luck = tensor("float32", [about.ending && player.temperature ? random() : 0.5]);  // by which it is over
  const [frame, ...after] = await run("commit", { ...given, tokens, luck, ...before });
  const over = about.ending ? (await after.shift().getData(true))[0] : 0;
  const certainty = (await sure.getData(true)).reduce((sum, each) => sum + Math.exp(each), 0) / n;
  return { picture: await frame.getData(true), certainty, over, state: after };
}

// ---- the player -----------------------------------------------------------------------------------------------------

function show(picture, action, number, certainty = 1, over = 0) { Object.assign(player, { picture, action, number, certainty, over }); }

function forget(moment) { for (const each of moment.state) each.dispose(); }

async function beginAgain() {
  random = generator(player.seed);
  player.state = await beginState(player.start);
  show(player.start, null, 0);
}

async function restart() {
  for (const moment of player.past) forget(moment);
  player.past = [];
  await beginAgain();
  Object.assign(player, { redraw: true, single: undefined, tapped: null });
  if (player.startIndex !== null) sendPreviews(player.startIndex);
  sendState();
}

async function pixels(source) {
  const { width, height } = about.hello, canvas = new OffscreenCanvas(width, height), pen = canvas.getContext("2d");
  const image = await createImageBitmap(source), scale = Math.max(width / image.width, height / image.height);
  const wide = image.width * scale, tall = image.height * scale;
  pen.fillRect(0, 0, width, height);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(image, (width - wide) / 2, (height - tall) / 2, wide, tall);
  const rgba = pen.getImageData(0, 0, width, height).data;
  return Uint8Array.from({ length: width * height * 3 }, (_, i) => rgba[Math.floor(i / 3) * 4 + i % 3]);
}

async function begin(index) {
  player.start = await pixels(new Blob([await read(`start/${index}.png`)]));
  player.startIndex = index;
  await restart();
}

async function step(action) {
  const next = player.over ? null : await imagine(action, player.state);
  const { picture, action: led, number, certainty, over } = player;
  player.past.push({ picture, action: led, number, certainty, over, state: player.state });
  const bytes = about.state_bytes;
  while (player.past.length > 1 && (player.past.length * bytes > PAST_BYTES || player.past.length > PAST_MOMENTS)) forget(player.past.shift());
  if (!next) { await beginAgain(); return tell({ type: "over", outcome: over === 2 ? "won" : "lost" }); }
  player.state = next.state;
  show(next.picture, action, number + 1, next.certainty, next.over);
}

function undo() {
  const moment = player.past.pop();
  if (!moment) return tell({ type: "error", text: "This is as far back as it goes." });
  forget(player);
  player.state = moment.state;
  show(moment.picture, moment.action, moment.number, moment.certainty, moment.over);
  Object.assign(player, { redraw: true, paused: true, single: undefined, tapped: null });
  sendState();
}

function header(fields) {
  const view = new DataView(new ArrayBuffer(HEADER_BYTES));
  view.setUint8(0, fields.kind); view.setUint8(1, fields.form); view.setUint16(2, fields.action, true);
  view.setUint32(4, fields.serial || 0, true); view.setUint32(8, fields.number || 0, true); view.setFloat32(12, fields.ms || 0, true);
  view.setUint16(16, fields.width, true); view.setUint16(18, fields.height, true); view.setUint16(20, fields.parts, true);
  view.setUint16(22, Math.round(65535 * (fields.certainty ?? 1)), true);
  return new Uint8Array(view.buffer);
}

function post(head, body) {
  const whole = new Uint8Array(HEADER_BYTES + body.length);
  whole.set(head); whole.set(body, HEADER_BYTES);
  postMessage(whole.buffer, [whole.buffer]);
}

function sendFrame(ms) {
  const { width, height } = about.hello, rgba = new Uint8Array(width * height * 4).fill(255);
  for (let i = 0; i < width * height; i++) for (let c = 0; c < 3; c++) rgba[4 * i + c] = player.picture[3 * i + c];
  post(header({ kind: FRAME, form: RGBA, action: player.action ?? NO_ACTION, serial: ++player.serial, number: player.number,
    ms, width, height, parts: 1, certainty: player.certainty }), rgba);
}

async function sendPreviews(start) {
  for (let action = 0; action < about.actions.length; action++) {
    const strip = await read(`preview/${start}-${action}.jpg`).catch(() => null);
    if (strip) post(header({ kind: PREVIEW, form: JPEG, action, width: about.preview.width, height: about.preview.height,
      parts: about.hello.preview_frames }), strip);
  }
}

function sendState() {
  tell({ type: "state", playing: player.start !== null, paused: player.paused, recording: false, recorded: 0,
    start: player.startIndex, clip: null, seed: player.seed, steps: player.steps, temperature: player.temperature });
}

// ---- what the page says, and the loop ------------------------------------------------------------------------------------

const on = {
  held: ({ action }) => { player.held = action; if (action !== null) player.tapped = action; },
  ack: ({ serial }) => { player.acknowledged = serial; },
  step: ({ action }) => { player.single = action ?? idle(); },
  pause: ({ on }) => { player.paused = on; sendState(); },
  undo: () => jobs.push(undo),
  reset: ({ start, seed }) => jobs.push(() => { player.seed = seed ?? player.seed; return start == null ? restart() : begin(start); }),
  sampling: ({ steps, temperature }) => { Object.assign(player, { steps, temperature }); sendState(); },
  upload: ({ file }) => jobs.push(async () => {
    player.start = await pixels(file).catch(() => { throw new Error("this cannot be read as a picture; save it as png or jpg and try again"); });
    player.startIndex = null;
    await restart();
  }),
  actions: ({ actions }) => { about.actions = actions; tell({ type: "actions", actions, noop: idle() }); },
};
const idle = () => Math.max(0, about.actions.findIndex(entry => entry.noop));

let wake = () => {};
onmessage = ({ data }) => { on[data.type]?.(data); wake(); };

/** Until something is said, at most so long. Always lets messages in. */
function wait(ms) {
  return new Promise(done => { const timer = setTimeout(done, ms); wake = () => { clearTimeout(timer); done(); }; });
}

/** Make a frame when it is due, with the newest input; one whose input is new is due half an interval sooner. */
async function play() {
  let due = 0;
  const interval = 1000 / about.hello.fps;
  for (;;) {
    try {
      await wait(0);
      while (jobs.length) await jobs.shift()();
      const began = performance.now(), running = player.start !== null && !player.paused;
      const next = player.held ?? player.tapped ?? idle(), soonest = player.action === next ? due : due - interval / 2;
      if (player.redraw) player.redraw = false;
      else if (player.start !== null && player.single !== undefined) { const action = player.single; player.single = undefined; await step(action); }
      else if (running && began >= soonest) {
        player.tapped = null;
        await step(next);
        due = Math.min(began, Math.max(due, began - interval / 2)) + interval;
      } else { await wait(running ? soonest - began : 1e6); continue; }
      sendFrame(performance.now() - began);
      while (player.acknowledged < player.serial) await wait(1000);
    } catch (error) { tell({ type: "error", text: error.message }); await wait(1000); }
  }
}

load().catch(error => tell({ type: "full", text: `This world cannot be loaded: ${error.message}` }));
