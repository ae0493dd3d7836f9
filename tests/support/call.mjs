// Calls functions of a module as each line of the standard input says, `[name, ...arguments]`, and prints what they give.
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const imported = await import(pathToFileURL(process.argv[2]));
const revive = (name, value) => (name === "which" && /=>/.test(value) ? eval(value) : value);

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...given] = JSON.parse(line, revive);
  let told;
  try {
    told = { value: name === "exports" ? Object.keys(imported) : await imported[name](...given) };
  } catch (error) {
    told = { error: String(error) };
  }
  console.log(JSON.stringify(told));
}
