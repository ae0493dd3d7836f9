"""Random pages, made of pieces that matter to a tokenizer; and how their links are moved."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from random import Random

HERE = "https://h.example/"
THERE = "https://k.example/"


def move(url: str) -> str | None:
    """Move links to another host: a linker whose work is easily told from all else."""
    return url.replace(HERE, THERE, 1) if url.startswith(HERE) else None


LINKS = (
    '<img src="{}">',
    "<img src='{}'>",
    "<img src={}>",
    "<IMG\tSRC\n=\f{} alt>",
    "<img/src={}/>",
    '<img alt=">" src="{}">',
    "<img alt='\">' src = '{}' >",
    '<img src="{}" src="{}">',
    '<img a="b"src="{}"c>',
    '<img =src="{}" src="{}">',
    "<image src={}>",
    '<img srcset="{} 1x, {} 2x" src=x>',
    '<img srcset=" ,{},x 1x,{}, ,{} (a,b) 2x">',
    "<picture><source srcset={}></picture>",
    "<video poster='{}'></video>",
    "<input type=IMAGE src={}>",
    "<input src={}>",
    "<svg><image href='{}' /></svg>",
    "<image xlink:href='{}'>",
    "<table background={}><tr><td background={}>x</table>",
    "<p style='background: url({})'>",
    '<p style="background:url( &quot;{}&quot; )">',
    "<p style=color:red;background:URL({})>",
    "<style>p{{background:url('{}')}}</style>",
    "<style>/* url({}) */ p{{content:'url(x)';background:image-set('{}' 1x)}}</style>",
    "<link rel=icon href={}>",
    "<link rel='shortcut ICON' href={}>",
    "<link rel=preload as=image href={} imagesrcset='{} 2x'>",
    "<link rel=stylesheet href={}>",
    "<meta property=og:image content={}>",
    "<a href={}>",
    "<img src='{}?a&copy=1&amp;b&notit;&#38;c&#x26!d&#38'>",
    '<script type="application/ld+json">{{"image": "{}"}}</script>',
)

# What begins something that has to be closed, and what closes it; breakage; foreign content. There is no end tag that
# may stray into a drawing: what that ends is guessed, see `foreign`.
MARKUP = (
    *("<!--", "-->", "--!>", "<!-->", "<!--->", "<!---", "--", "->", "<!", "<?", "<!x>", "<?x>", "</>", "</ x>", "</-"),
    *(
        "<![CDATA[",
        "]]>",
        "<",
        "<<",
        ">",
        '"',
        "'",
        "=",
        "/",
        "/>",
        "&",
        " ",
        "\n",
        "x",
        "<a",
        "<a b='",
        '<a b="',
        "<a b=",
    ),
    *("<script>", "</script>", "</script ", "<SCRIPT/>", "<style>", "</style>", "<title>", "</title>", "<textarea>"),
    *(
        "</textarea>",
        "<xmp>",
        "</xmp>",
        "<iframe>",
        "</iframe>",
        "<noembed>",
        "</noembed>",
        "<noframes>",
        "</noframes>",
    ),
    *("<svg>", "<svg/>", "</svg>", "<math>", "</math>", "<foreignObject>", "</foreignObject>", "<desc>", "</desc>"),
    *("<mi>", "</mi>", "<annotation-xml encoding=text/html>", "<annotation-xml>", "</annotation-xml>", "<g>", "</g>"),
    *(
        "<p>",
        "</p>",
        "<div>",
        "<font>",
        "<font color=x>",
        "<b>",
        "<br>",
        "</br>",
        "<path/>",
        "<path d=''>",
    ),
    *(
        "<template>",
        "</template>",
        "<scripture>",
        "<styl>",
        "<imgx src=y>",
        "<svg><path d='M0'/></svg>",
        "<svg title=x>",
    ),
)


def make_page(random: Random, number: int) -> str:
    """Make a page; its links have names of their own."""
    parts = []
    for at in range(random.randint(1, 9)):
        if random.random() < 0.45:
            names = [f"{HERE}{number}-{at}-{n}.png" for n in range(3)]
            parts.append(random.choice(LINKS).format(*names))
        else:
            parts.append(random.choice(MARKUP))
    return "".join(parts)
