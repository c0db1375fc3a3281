// Mean of each file of numbers in the workspace `readings`, as JSON files in the workspace `results`.
import { readFile } from "node:fs/promises";
import { request } from "node:http";

/** Ask the sidecar; the answer's JSON, or an error with the sidecar's sentence. */
function broker(method, path, body) {
  return new Promise((resolve, reject) => {
    const options = { socketPath: "/run/brokervol/broker.sock", method, path: `/v1/workspaces${path}` };
    const asked = request(options, async (answer) => {
      let text = "";
      for await (const part of answer.setEncoding("utf8")) text += part;
      const document = JSON.parse(text);
      if (answer.statusCode < 400) resolve(document);
      else reject(new Error(document.detail));
    });
    asked.on("error", reject);
    asked.setHeader("Content-Type", "application/json");
    asked.end(body);
  });
}

const { workspaces } = await broker("GET", "");
const place = Object.fromEntries(workspaces.map(({ name, volume_path }) => [name, volume_path]));

const { files } = await broker("GET", "/readings/files?recursive=true&limit=10000");
for (const { file } of files) {
  const numbers = (await readFile(`${place.readings}/${file}`, "utf8")).trim().split("\n").map(Number);
  const mean = numbers.reduce((sum, number) => sum + number, 0) / numbers.length;
  const report = JSON.stringify({ file, count: numbers.length, mean }) + "\n";
  const target = `node/${file.replace(/\.txt$/, ".json")}`;
  const { file: record } = await broker("PUT", `/results/content/${target}`, report);
  console.log(record.file_path, record.file_size, "bytes");
}
