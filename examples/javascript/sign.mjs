// Prints for each link what a page asks imgkeep for, signed, for an hour. With imgkeep's address and its key:
//
//   curl -o imgkeep.mjs http://127.0.0.1:8080/imgkeep.js
//   IMGKEEP_SECURITY__SIGNING_KEYS=... node sign.mjs https://example.com/picture.png
import { signedImgUrl } from "./imgkeep.mjs";

const [key] = (process.env.IMGKEEP_SECURITY__SIGNING_KEYS ?? "").split(",");
const publicUrl = process.env.IMGKEEP_SERVER__PUBLIC_URL ?? "http://127.0.0.1:8080";
const expires = Math.floor(Date.now() / 1000) + 3600;

for (const link of process.argv.slice(2)) {
  console.log(await signedImgUrl(link, { key, publicUrl, expires }));
}
