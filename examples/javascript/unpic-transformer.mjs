// A transformer for unpic's components without a list of services, as in React:
//
//   import { Image } from "@unpic/react/base";
//   <Image src={src} transformer={transform} options={{ publicUrl: "https://img.example.com" }} width={800} height={600} />
//
// Images of your own site, as "/photo.png", stay. The height stays with the page, whose `object-fit` crops, and a width
// becomes the next one of WIDTHS.

/** derive.widths of imgkeep: any client may ask for these. */
const WIDTHS = [
  16, 32, 48, 64, 96, 128, 256, 320, 384, 480, 640, 750, 828, 960, 1080, 1200, 1440, 1920, 2048, 2560, 3840,
];

export function transform(src, { width, quality, format = "auto" }, { publicUrl = "" } = {}) {
  const link = String(src);
  const options = new URLSearchParams();
  if (width) options.set("w", WIDTHS.find((each) => each >= width) ?? WIDTHS.at(-1));
  if (quality) options.set("q", quality);
  options.set("format", format);
  if (link.startsWith(`${publicUrl}/images/`)) return `${link}?${options}`;
  return /^https?:/.test(link) ? `${publicUrl}/img?src=${encodeURIComponent(link)}&${options}` : link;
}
