// Answers what it gets.
import { createServer } from "node:http";

createServer((request, response) => {
  const pieces = [];
  request.on("data", (piece) => pieces.push(piece));
  request.on("end", () => {
    response.setHeader("content-type", "application/json");
    response.end(Buffer.concat(pieces));
  });
}).listen(Number(process.env.PORT), "127.0.0.1");
