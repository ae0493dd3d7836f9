/**
 * Types of imgkeep.js. They name no types of browsers, which projects for servers do not have.
 */

/** The type of `new Name()`, where the environment has it. */
type Instance<Name extends string> = typeof globalThis extends Record<Name, { prototype: infer Made }> ? Made : never;
type Nothing = null | undefined;

/**
 * Which links are rewritten: all; those of hosts, `*` for any characters, `?` for one and `[abc]` for one of these;
 * those a function chooses.
 */
export type Which = "all" | readonly string[] | ((url: Instance<"URL">) => boolean);

/** The options of a derived picture: parameters of `/img`. */
export interface Picture {
  /** A preset of `[derive.presets]`. */
  preset?: string;
  /** Width in CSS pixels. */
  w?: number | string;
  /** Height in CSS pixels. */
  h?: number | string;
  /** Device pixels for each CSS pixel, 1 to 4. */
  dpr?: number | string;
  /** `"inside"` by default, which never enlarges. */
  fit?: "inside" | "contain" | "cover";
  /** The part that stays: `"center"`, a point of the compass, or `"attention"`. */
  gravity?: string;
  /** `"auto"` is the best one that the browser takes; if left out, that of the original. */
  format?: "auto" | "jpeg" | "png" | "webp" | "avif" | "jxl";
  /** Quality, 1 to 100. */
  q?: number | string;
  /** Background, as `rrggbb`. */
  bg?: string;
  /** Clockwise, in degrees. */
  rotate?: number | string;
  /** Standard deviation in CSS pixels. */
  blur?: number | string;
  /** The only frame of an animation, counted from 0. */
  page?: number | string;
  metadata?: "strip" | "keep";
}

export interface Options extends Picture {
  /** Prefix of the paths of imgkeep, as `server.public_url`; empty for pages from the same server. */
  publicUrl?: string | Instance<"URL">;
  /** `"all"` by default. */
  which?: Which;
  /**
   * What relative links are resolved against, usually `document.baseURI`. If left out, they stay as they are, as do all
   * links to the page's own server.
   */
  base?: string | Instance<"URL">;
  /**
   * What imgkeep may fetch: patterns of hosts, or of hosts and paths, as in `sources.allow`; other links stay. If left
   * out, `observe` goes by what the server wrote into the module, and all others allow any.
   */
  allow?: readonly string[];
  /** Exceptions that imgkeep may not fetch, in patterns as in `sources.deny`. */
  deny?: readonly string[];
}

export interface SigningOptions extends Options {
  /** The first of `security.signing_keys`. */
  key: string;
  /** End of the signature, in seconds since 1970; none by default. */
  expires?: number;
}

/** Returns the link of imgkeep for `src`; a link that the module leaves alone comes back as it is. */
export function imgUrl<Src extends string | Instance<"URL"> | Nothing>(
  src: Src,
  options?: Options,
): string | Extract<Src, Nothing>;

/**
 * Makes a `srcset` of one link in several widths, in pixels of the picture, with `format: "auto"` unless the options name another
 * one. It is empty for a link that the module leaves alone.
 */
export function srcset<Src extends string | Instance<"URL"> | Nothing>(
  src: Src,
  widths: readonly number[],
  options?: Options,
): string | Extract<Src, Nothing>;
/** Rewrites the links of a `srcset` as `imgUrl` does; no other character of it changes. */
export function srcset<Value extends string | Nothing>(
  value: Value,
  options?: Options,
): string | Extract<Value, Nothing>;

/** As `imgUrl`, signed. For servers: a key is a secret. */
export function signedImgUrl<Src extends string | Instance<"URL"> | Nothing>(
  src: Src,
  options: SigningOptions,
): Promise<string | Extract<Src, Nothing>>;

/** As `srcset`, signed. */
export function signedSrcset<Src extends string | Instance<"URL"> | Nothing>(
  src: Src,
  widths: readonly number[],
  options: SigningOptions,
): Promise<string | Extract<Src, Nothing>>;
/** As `srcset`, signed. */
export function signedSrcset<Value extends string | Nothing>(
  value: Value,
  options: SigningOptions,
): Promise<string | Extract<Value, Nothing>>;

/** Returns the signed path of any source URL, or of a stored image: `/img?src=...&w=...&exp=...&sig=...`. */
export function signedPath(key: string, src: string, expires?: number | null, options?: Picture): Promise<string>;

/**
 * Rewrites the links to images under `root`, by default the page, and from then on those that scripts insert or
 * change. Shadow roots and frames are roots of their own. Links that the server would refuse stay, and a picture
 * whose new link fails gets its first link back.
 *
 * @returns A function that ends this.
 */
export function observe(
  root?: Instance<"Document"> | Instance<"DocumentFragment"> | Instance<"Element">,
  options?: Options,
): () => void;
