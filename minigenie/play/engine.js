// The engine of a page that a server plays for: a websocket, and a few requests beside it.
async function post(path, body) {
  let answer;
  try { answer = await fetch(path, { method: "POST", body }); } catch { throw new Error("The world is out of reach. Try again."); }
  if (!answer.ok) throw new Error((await answer.json()).error);
}

const engine = {
  kinds: ["mp4", "gif"],
  saved: "for everybody who plays this world",
  open: () => new WebSocket(new URL("play", location.href.replace(/^http/, "ws"))),
  picture: i => `start/${i}.png`,
  recording: kind => `recording.${kind}?player=${hello.player}`,
  begin: file => post(`start?player=${hello.player}`, file),
  save: actions => post("actions", JSON.stringify(actions)),
};
