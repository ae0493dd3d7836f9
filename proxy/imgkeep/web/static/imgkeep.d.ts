/**
 * Types of imgkeep.js. They name no types of browsers, which projects for servers do not have.
 */

/** What `new Name()` makes, where the environment has it. */
type Instance<Name extends string> = typeof globalThis extends Record<Name, { prototype: infer Made }> ? Made : never;
type Nothing = null | undefined;

/**
 * Which links are rewritten: all; those of hosts, `*` for any characters, `?` for one and `[abc]` for one of these;
 * those a function chooses.
 */
export type Which = "all" | readonly string[] | ((url: Instance<"URL">) => boolean);

export interface Options {
  /** What stands before our paths, as `server.public_url`; empty: nothing, for pages from the same server. */
  publicUrl?: string | Instance<"URL">;
  /** `"all"` if left out. */
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
  /** What imgkeep may not fetch all the same, in patterns as in `sources.deny`. */
  deny?: readonly string[];
}

export interface SigningOptions extends Options {
  /** The first of `security.signing_keys`. */
  key: string;
  /** Until when the signature holds, in seconds since 1970; for ever if left out. */
  expires?: number;
}

/** Gives the link to ask imgkeep for in the place of `src`; what is left alone comes back as it is. */
export function imgUrl<Src extends string | Instance<"URL"> | Nothing>(
  src: Src,
  options?: Options,
): string | Extract<Src, Nothing>;

/** Does the same to the links of a `srcset`; no other character of it changes. */
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
export function signedSrcset<Value extends string | Nothing>(
  value: Value,
  options: SigningOptions,
): Promise<string | Extract<Value, Nothing>>;

/** Gives the signed path of a source URL, whatever it is: `/img?src=...&exp=...&sig=...`. */
export function signedPath(key: string, src: string, expires?: number | null): Promise<string>;

/**
 * Rewrites the links to images under `root`, the page if left out, and from then on those that scripts insert or
 * change. What is in shadow roots and frames has roots of its own. Links that the server would refuse stay, and a picture
 * whose new link fails gets its first link back.
 *
 * @returns A function that ends this.
 */
export function observe(
  root?: Instance<"Document"> | Instance<"DocumentFragment"> | Instance<"Element">,
  options?: Options,
): () => void;
