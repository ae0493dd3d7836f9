"""
Time what is read from a link, against yarl parsing the same link in the same run.

    python -m bench.identity

Each figure is the median of rounds, in microseconds for one link on one core, `read_source` not included: who asks for
an identity has read the source before. The aim is 20 for a signed link of 500 bytes.
"""

from __future__ import annotations

import statistics
import sys
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from yarl import URL

from imgkeep.core.identity import BUILT_IN, identify
from imgkeep.core.identity.jwt import read_jwt
from imgkeep.core.source_url import read_source

if TYPE_CHECKING:
    from collections.abc import Callable

    from imgkeep.core.records import Source

ROUNDS: Final = 15
TURNS: Final = 3000
NOW: Final = datetime(2026, 1, 10, 12, 30, tzinfo=UTC)
HEX: Final = "08ceefc08f3fae29dfff8c7a79a964e1a5e76eda9ad06fc61fc48996415484e4"

LINKS: Final = {
    "unsigned, no query": "https://www.example.com/images/2026/01/10/a-picture-of-a-cat.png",
    "unsigned, transformations": "https://images.example.com/photo-1?ixlib=rb-4.0&w=1080&fit=crop&fm=jpg&q=80&crop=entropy",
    "Azure SAS (OpenAI)": "https://oaidalleapiprodscus.blob.core.windows.net/private/org-RIlK7i8jHlJuGLflEnk9p2uz/"
    "user-OOKdzIHeP5RtAgi4Pbn46Pzj/img-fygASSfVki0vtKhLYcqmDor0.png?st=2026-01-10T11%3A00%3A00Z"
    "&se=2026-01-10T13%3A00%3A00Z&sp=r&sv=2024-08-04&sr=b&rscd=inline&rsct=image%2Fpng"
    "&skoid=68c6da1d-7c4f-4416-a449-9ab798bffd98&sktid=a62b4b1d-cc31-4aac-aca5-3510fb669d86"
    "&skt=2026-01-10T11%3A00%3A00Z&ske=2026-01-11T13%3A00%3A00Z&sks=b&skv=2024-08-04"
    "&sig=8gaC9fYFLIo2wvL6BkPo0fbjEbcnSNUim95XV7NDj3c%3D",
    "AWS SigV4 with session": "https://faas-output-image.s3.ap-southeast-1.amazonaws.com/prod/df5e6b66-77e0-461d/85a7.jpeg"
    "?X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential=ASIAZ5U8DQZEF4J9NILN%2F20260110%2Fap-southeast-1%2Fs3%2F"
    "aws4_request&X-Amz-Date=20260110T120000Z&X-Amz-Expires=3600&X-Amz-Security-Token=IQoJb3JpZ2luX2VjEEXAMPLE"
    f"&X-Amz-SignedHeaders=host&X-Amz-Signature={HEX}&x-id=GetObject",
    "CloudFront canned": "https://mms.twiliocdn.com/AC1ce3e9064c2ebc7a9ff826d5cabdd647/10753052a461ba0551442b5cf5680d05"
    f"?Expires=1768050000&Signature={HEX * 5}__&Key-Pair-Id=K2EXAMPLEKEYID",
    "Discord": "https://cdn.discordapp.com/attachments/1100000000000000001/1100000000000000002/blue-bg.png"
    f"?ex=69624d50&is=6960fbd0&hm={HEX}&",
    "Facebook": "https://scontent.fhan5-2.fna.fbcdn.net/v/t39.30808-6/471000001_1000000000000001_2000000000000001_n.jpg"
    "?_nc_cat=109&ccb=1-7&_nc_sid=6ee11a&_nc_ohc=lJk17vz2tlbCME0I4Mgn2ZF&_nc_oc=DnzhleDv_uIfnicVyf7zNVNlL6Z_Gt1OXhwtCE6"
    "&_nc_zt=23&_nc_ht=scontent.fhan5-2.fna.fbcdn.net&_nc_gid=mG8dW_C3j64pQkqrUX8cWQ"
    "&oh=00_VYd4zUaSdgv7F66NuPWMa_q9F7rTHhwSNaliqiigJPX1ogEa&oe=69624D50",
    "Supabase (JWT with claims)": "https://abc.supabase.co/storage/v1/render/image/sign/logos/LogoWeb.png?token="
    "eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJ1cmwiOiJsb2dvcy9Mb2dvV2ViLnBuZyIsInRyYW5zZm9ybWF0aW9ucyI6IndpZHRoOjEwMCxo"
    "ZWlnaHQ6MTAwLHJlc2l6ZTpjb3ZlciIsImlhdCI6MTc2ODA0OTk0MCwiZXhwIjoxNzY4MDUwMDAwfQ.pI-lzz-Ib-3T2_W3aMZkP-j_t2ft84RdAc",
}


def _median_us(work: Callable[[str], object], url: str) -> float:
    rounds = []
    for number in range(ROUNDS):
        # Each URL once: yarl remembers those that it has split, and a link that is not known yet is none of them.
        urls = [f"{url}#{number}-{turn}" for turn in range(TURNS)]
        start = time.perf_counter()
        for text in urls:
            work(text)
        rounds.append((time.perf_counter() - start) / TURNS * 1e6)
    return statistics.median(rounds)


def main() -> int:
    """Print a line for each kind of link."""
    print(f"{'link':28}{'bytes':>7}{'identify':>10}{'host unseen':>13}{'yarl':>8}{'ratio':>7}")
    for name, url in LINKS.items():
        source = read_source(url)

        def ours(_: str, source: Source = source) -> None:
            read_jwt.cache_clear()
            identify(source, NOW)

        def unseen(_: str, source: Source = source) -> None:
            read_jwt.cache_clear()
            BUILT_IN.find_by_host.cache_clear()
            identify(source, NOW)

        warm, cold, theirs = _median_us(ours, url), _median_us(unseen, url), _median_us(URL, url)
        print(f"{name:28}{len(url):7}{warm:10.1f}{cold:13.1f}{theirs:8.1f}{warm / theirs:7.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
