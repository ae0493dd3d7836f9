"""Pages, and what becomes of them: `§` is a link that is rewritten, `¤` one that some rule leaves alone."""

from __future__ import annotations

HERE, THERE = "https://h.example/a.png", "https://k.example/a.png"

_HTML = {
    # --- where images hide
    "img": "<img src='§' srcset='§ 1x, § 2x' data-src=§ data-srcset=\"§\">",
    "source": "<picture><source srcset=§ data-srcset='§ 3x'></picture>",
    "video": "<video poster=§ src=¤></video>",
    "input": "<input type=image src=§><input type=IMAGE src=§><input type=text src=¤><input src=¤>",
    "image in SVG": "<svg><image href=§ xlink:href=§ src=¤ /></svg>",
    "image in HTML": "<image src=§ href=¤>",
    "image in MathML": "<math><image src=¤ href=¤></image></math>",
    "icons": "<link rel='shortcut icon' href=§><link rel=apple-touch-icon href=§><link rel=ICON href=§>",
    "words": "<link rel='x\ticon\fy' href=§><link rel='icon\xa0x' href=¤><link rel='icon\x0b' href=¤>"
    "<link rel='icon&nbsp;' href=¤><link rel='icon&#12;x' href=§><meta property='og:image\u3000' content=¤>",
    "preload": "<link rel=preload as=image href=§ imagesrcset='§ 1x'><link rel=preload as=script href=¤ imagesrcset=¤>",
    "other links": "<link rel=stylesheet href=¤><link href=¤><link rel=canonical href=¤><a href=¤></a>",
    "meta": "<meta property=og:image content=§><meta property='og:image:secure_url' content=§>"
    "<meta name=twitter:image content=§><meta name=description content=¤><meta content=¤>",
    "background": "<body background=§><table background=§><tr background=§><td background=§></table><p background=¤>",
    "style attribute": "<p style='background: url(§) no-repeat, url( \"§\" )'><g style=a:url(§)>",
    "style attribute with image-set": "<p style=\"background:image-set('§' 1x)\">",
    "style attribute in SVG": "<svg><g style='mask-image: url(§)'/></svg>",
    "style with references": "<p style='background:&#117;rl(&quot;§&quot;)'>",
    "style": "<style>p { background: url(§) }</style><style type=TEXT/CSS>p{background:url('§')}</style>",
    "style that is none": "<style type=text/less>p { background: url(¤) }</style>",
    "style that is open": "<style>p { background: url(§)",
    "JSON-LD": '<script type="application/ld+json; charset=utf-8">{"image": "§"}</script>',
    "JSON-LD by its type": '<script type=" application/ld+json\n">{"image": "§"}</script>'
    '<script type="\xa0application/ld+json">{"image": "¤"}</script>',
    "JSON-LD with scripts": '<script type=application/ld+json>"<script><!--"</script><img src=§>',
    "JSON-LD that is open": '<script type="application/ld+json">{"image": "§"}',
    "noscript": "<noscript><img src=§><noscript><base href=¤></noscript><img src=§>",
    "template": "<template><img src=§></template></template><img src=§>",
    # --- where they do not
    "comments": "<!-- <img src=¤> --><img src=§><!--><img src=§><!---><img src=§><!-- --!><img src=§>"
    "<!--- <img src=¤> -- > <img src=¤> --->",
    "bogus comments": "<!x <img src=¤><?x <img src=¤></ x <img src=¤></><img src=§>",
    "doctype": '<!doctype html public "<img src=¤><img src=§>',
    "text": "< img src=¤><1mg src=¤><\\img src=¤>",
    "scripts": "<script>'<img src=¤>'</script><script type=module><!-- <script> </script> <img src=¤> --></script>"
    "<img src=§>",
    "script in comments": "<script><!-- <script></script></script><img src=§>",
    "script with a short comment": "<script><!--><script></script><img src=§>",
    "script with an end": "<script></scripture></script\n><img src=§>",
    "raw text": "<textarea><img src=¤></textarea><title><img src=¤></title><xmp><img src=¤></xmp>"
    "<iframe><img src=¤></iframe><noembed><img src=¤></noembed><noframes><img src=¤></noframes><img src=§>",
    "raw text in any case": "<TextArea/><img src=¤></TEXTAREA <img src=¤><img src=§>",
    "raw text that is open": "<title></titles><img src=¤>",
    "plaintext": "<img src=§><plaintext><img src=¤></plaintext><img src=¤>",
    "attributes": "<p title='<img src=¤>' alt=\"<img src=¤>\"><img alt='<img src=¤>' src=§>",
    "sections": "<svg><![CDATA[<img src=¤>]]><image href=§ /><![CDATA[>]]</svg><img src=¤>",
    "sections in HTML": "<![CDATA[<img src=¤><img src=§>]]>",
    # --- tags
    "names": "<IMG SRC=§><imgs src=¤><img\tsrc=§><img/src=§><img\u212a src=¤><lin\u212a rel=icon href=¤>",
    "first of two": "<img src=§ src=¤><img SRC=x src=¤>",
    "no value": "<img src><img src=><img src=''><img src= >",
    "spaces": "<img src \t=\n\f'§'\r\n>",
    "no spaces": "<img alt=''src='§'alt=\"\">",
    "equals": "<img =src=¤ src==¤><img ==src=¤ src=§>",
    "quotes in names": "<img a\"b='' src=§><img src=\"§\"\"><img 'src=¤ src=§>",
    "slashes": "<img src=§ /><img/ /src=§/ alt>",
    "blanks around": "<img src=' \n §\t'><img src='\n'>",
    "end tags": "</img src=¤><a></a title='<img src=¤>'><img src=§></template src=¤><img src=§>",
    "open tag": "<img src=§><img src=¤",
    "open quote": "<img src=§><img src='¤>",
    "line ends": "<img\r\nsrc=§\r\n>\r\n\r",
    # --- foreign content
    "style in SVG": "<svg><style>p{a:url(&quot;§&quot;)}</style><STYLE TYPE=TEXT/CSS>p{a:url(§)}</STYLE\n></svg>",
    "style in SVG in sections": "<svg><style>/*<![CDATA[*/p{a:url('§')}<b>&]]>p{<!-- url(¤) --><!-->b:url(§)}</style>"
    "</svg>",
    "style in SVG across sections": "<svg><style>p{a:url(¤<![CDATA[)}p{b:url(¤]]>)}p{c:url(§)}</style></svg>",
    "style in SVG that holds more": "<svg><style>p{a:url(¤)}<image href=§ /></style><style><![CDATA[url(¤)</style>]]>"
    "<image href=§ />",
    "style in SVG that is none": "<svg><style/>p{a:url(¤)}</style><style type=text/less>p{a:url(¤)}</style></svg>",
    "style in SVG that is open": "<svg><style>p{a:url(§",
    "style in MathML": "<math><style>p{a:url(¤)}</style></math>",
    "title in SVG": "<svg><title><img src=§><style></title></svg>p{background:url(§)}</style></title></svg><img src=§>",
    "foreignObject": "<svg><foreignObject><div><textarea><img src=¤></textarea></svg></div><image src=§>"
    "</foreignObject><image href=§ /></svg>",
    "breakout": "<svg><g><p><image src=§ href=¤>",
    "breakout by font": "<svg><font><image href=§ /><font size=1><image src=§>",
    "breakout by an end": "<svg><g></p><image src=§>",
    "breakout into HTML": "<svg><desc><svg><g><b><image src=§></svg></b></desc><image href=§>",
    "end of what is around": "<div><svg><g></div><image src=§>",
    "end of what an integration point is in": "<svg><desc><b></desc><image src=§ href=¤></b></desc><image href=§ />"
    "<desc><b><svg><desc><i></b></i></desc></svg></b></desc><image href=§ />",
    "end of a shape": "<svg><path><desc></path><image href=§ /></svg>",
    "end of nothing that is around": "<svg><desc></div></desc><image href=§ /></svg>",
    "end of nothing": "<svg></nothing></g><image href=§>",
    "slash of a value": "<svg a=b/><image href=§ /></svg><svg a= /><image href=§ /></svg><image src=§>",
    "self-closing": "<svg/><image src=§><svg><svg /><g/><image href=§ />",
    "MathML": "<math><mi><image src=§></mi><mi><mglyph><image src=¤></mglyph></mi><annotation-xml><svg><image href=§>"
    "</svg></annotation-xml><annotation-xml encoding=Text/HTML><image src=§></annotation-xml>"
    "<annotation-xml encoding=application/xhtml+xml><image src=§></annotation-xml><mglyph>",
    "shapes": "<svg viewBox='0 0 1 1'><title>x</title><g><path d='M0'/><use href='#a'></use></g></svg><img src=§>"
    "<svg><path d='M0'/><path d=''></path><image href=§ /><path style='mask-image:url(§)'></svg>",
    "deep": "<svg>" + "<g>" * 200 + "</g>" * 300 + "<image href=§ />",
}  # fmt: skip

HTML = {
    name: (page.replace("§", HERE).replace("¤", HERE), page.replace("§", THERE).replace("¤", HERE))
    for name, page in _HTML.items()
}
"""By name, a page and what becomes of it."""
