// A server by Node: early hints, bodies with trailers, and what it was asked.
const http = require("http");
const server = http.createServer((request, response) => {
  if (request.url === "/hints") {
    response.writeEarlyHints({ link: "</style.css>; rel=preload; as=style" }, () => response.end("hinted"));
  } else if (request.url === "/trailers") {
    response.writeHead(200, { trailer: "x-sum" });
    response.write("body");
    response.addTrailers({ "x-sum": "7" });
    response.end();
  } else {
    const told = { method: request.method, url: request.url, version: request.httpVersion, headers: request.headers };
    let length = 0;
    request.on("data", (chunk) => { length += chunk.length; });
    request.on("end", () => response.end(JSON.stringify({ ...told, length })));
  }
});
server.on("checkContinue", (request, response) => {
  response.writeContinue();
  server.emit("request", request, response);
});
server.listen(0, "127.0.0.1", () => console.log("port", server.address().port));
