// The engine of a page without a server: a worker beside it computes the world. It stands in for the websocket.
/** Where the server does not isolate the page, a service worker does, once the page has loaded again. */
async function isolated() {
  if (crossOriginIsolated || !navigator.serviceWorker || sessionStorage.getItem("isolated")) return;
  try {
    await navigator.serviceWorker.register("isolate.js");
    await navigator.serviceWorker.ready;
  } catch { return; }  // then on one thread
  sessionStorage.setItem("isolated", "tried");
  location.reload();
  await new Promise(() => {});
}

class LocalWorld {
  constructor() {
    this.readyState = WebSocket.OPEN;
    this.recorder = null;
    isolated().then(() => this.#load());
  }
  #load() {
    this.worker = new Worker(`worker.js${location.search}`, { type: "module" });
    this.worker.onmessage = ({ data }) => this.#pass(data);
    this.worker.onerror = event => this.#pass(JSON.stringify({ type: "full", text: `This world cannot be loaded: ${event.message || "its worker.js is missing"}` }));
  }
  #pass(data) {
    if (typeof data !== "string") { this.onmessage({ data }); this.#draw(); return; }
    const message = JSON.parse(data);
    if (message.type === "loading") return notice(`Loading the world … ${Math.round(100 * message.share)} %`);
    if (message.type === "hello") { const kept = localStorage.getItem(this.#name(message.world)); this.kept = kept && JSON.parse(kept); }
    if (message.type === "actions" && this.kept?.length === message.actions.length) { const actions = this.kept; this.kept = null; return this.worker.postMessage({ type: "actions", actions }); }
    if (message.type === "state") { this.state = message; Object.assign(message, this.#recording()); }
    this.onmessage({ data: JSON.stringify(message) });
  }
  send(text) {
    const message = JSON.parse(text);
    if (message.type === "record") return message.on ? this.#record() : this.recorder?.stop();
    this.worker.postMessage(message);
  }
  #name(world) { return `actions of ${world}`; }
  save(actions) {
    localStorage.setItem(this.#name(hello.world), JSON.stringify(actions));
    this.worker.postMessage({ type: "actions", actions });
  }
  // Recording is the browser's own, of a larger copy of the screen.
  #recording() { return { recording: this.recorder?.state === "recording", recorded: this.video ? 1 : 0 }; }
  #tell() { this.onmessage({ data: JSON.stringify({ ...this.state, ...this.#recording() }) }); }
  #record() {
    const zoom = Math.max(1, Math.round(512 / hello.height)), canvas = document.createElement("canvas");
    Object.assign(canvas, { width: zoom * hello.width, height: zoom * hello.height });
    this.large = canvas.getContext("2d");
    this.large.imageSmoothingEnabled = false;
    const parts = [];
    this.recorder = new MediaRecorder(canvas.captureStream());
    this.recorder.ondataavailable = ({ data }) => parts.push(data);
    this.recorder.onstop = () => {
      URL.revokeObjectURL(this.video);
      this.video = URL.createObjectURL(new Blob(parts, { type: this.recorder.mimeType }));
      this.#tell();
    };
    this.recorder.start();
    this.#draw();
    this.#tell();
  }
  #draw() {
    if (this.recorder?.state === "recording") this.large.drawImage($("screen"), 0, 0, this.large.canvas.width, this.large.canvas.height);
  }
}

const engine = {
  kinds: ["webm"],
  saved: "in this browser",
  open: () => new LocalWorld(),
  picture: i => `start/${i}.png`,
  recording: () => socket.video,
  begin: async file => socket.worker.postMessage({ type: "upload", file }),
  save: async actions => socket.save(actions),
};
