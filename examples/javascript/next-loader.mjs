"use client";
// A loader for the Image component of Next.js: copy it beside next.config.js, which has
//
//   images: { loader: "custom", loaderFile: "./next-loader.mjs" }
//
// Its widths are those of derive.widths, which any client may ask for. Images of your own site, as "/photo.png", stay.

const PUBLIC_URL = process.env.NEXT_PUBLIC_IMGKEEP_URL ?? "http://127.0.0.1:8080";

export default function imgkeepLoader({ src, width, quality }) {
  const options = new URLSearchParams({ w: width, format: "auto" });
  if (quality) options.set("q", quality);
  // An image that imgkeep has stored already, under its permanent URL.
  if (src.startsWith(`${PUBLIC_URL}/images/`)) return `${src}?${options}`;
  return /^https?:/.test(src) ? `${PUBLIC_URL}/img?src=${encodeURIComponent(src)}&${options}` : src;
}
