// A provider for @nuxt/image: copy it into the project, and name it in nuxt.config.ts:
//
//   image: {
//     provider: "imgkeep",
//     providers: {
//       imgkeep: { provider: "~/nuxt-provider.mjs", options: { baseURL: "https://img.example.com" } },
//     },
//   }
//
// Images of your own site, as "/photo.png", stay. A width alone becomes the next one of WIDTHS.
import { defineProvider } from "@nuxt/image/runtime";

/** derive.widths of imgkeep: any client may ask for these. */
const WIDTHS = [
  16, 32, 48, 64, 96, 128, 256, 320, 384, 480, 640, 750, 828, 960, 1080, 1200, 1440, 1920, 2048, 2560, 3840,
];
/** The modifiers of @nuxt/image, by the parameters of imgkeep; other parameters have one name in both. */
const NAMES = { width: "w", height: "h", quality: "q", background: "bg" };

export default defineProvider({
  getImage(src, { modifiers = {}, baseURL = "" }) {
    const isStored = src.startsWith(`${baseURL}/images/`);
    if (!isStored && !/^https?:/.test(src)) return { url: src };
    const options = new URLSearchParams();
    for (const [name, value] of Object.entries({ format: "auto", ...modifiers })) {
      if (value != null && value !== "") options.set(NAMES[name] ?? name, String(value).replace(/^#/, ""));
    }
    const width = Number(options.get("w"));
    if (width && !options.has("h")) options.set("w", WIDTHS.find((each) => each >= width) ?? WIDTHS.at(-1));
    return { url: isStored ? `${src}?${options}` : `${baseURL}/img?src=${encodeURIComponent(src)}&${options}` };
  },
});
