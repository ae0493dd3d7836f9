// Prints for each link what a page asks imgkeep for, signed, for an hour. It needs imgkeep's module beside it, and one of
// imgkeep's keys. Beside examples/origin.py and imgkeep:
//
//   cp examples/javascript/sign.mjs out
//   curl -s -o out/imgkeep.mjs http://127.0.0.1:8080/imgkeep.js
//   export IMGKEEP_SECURITY__SIGNING_KEYS=a-key-for-the-examples-only-0123
//   node out/sign.mjs "$(curl -s http://127.0.0.1:9000/link)" > out/signed.txt
import { signedImgUrl } from "./imgkeep.mjs";

const [key] = (process.env.IMGKEEP_SECURITY__SIGNING_KEYS ?? "").split(",");
const publicUrl = process.env.IMGKEEP_SERVER__PUBLIC_URL ?? "http://127.0.0.1:8080";
const expires = Math.floor(Date.now() / 1000) + 3600;

for (const link of process.argv.slice(2)) {
  console.log(await signedImgUrl(link, { key, publicUrl, expires }));
}
