"""The golden scenarios (locks.md §1.18, Q14), event for event, for every level that can run them.

A script is steps with ``;`` between them, each ``step = effects`` in their exact order; nothing after ``=``
means queued (or ignored) silently. Steps: ``a+PR`` new request, ``a>EX`` conversion, ``a-`` unlock, ``a!`` cancel,
``a*`` its node dies; flags and "value" follow. Effects: ``a:ok@PR`` (``+DEMOTED``, ``+ALTMODE`` if the outcome
says so), ``a:gone``, ``a:canceled``, a refusal's code, ``a:bast(EX)``. ``~`` in front marks a repetition that B5
permits and B6 drops at delivery. Every lock wants to hear whom it blocks.
"""

from __future__ import annotations

import re

__all__ = ["GOLDEN", "STEP", "VALUES", "steps"]

STEP = re.compile(r"(?P<who>\w)(?P<what>[+>!*-])(?P<mode>[A-Z]{2})?(?P<rest>.*)")

GOLDEN = {
    "G1 no reader bypass": """a+PR=a:ok@PR; b+EX=a:bast(EX); c+PR=; a-=a:gone b:ok@EX b:bast(PR);
        b-=b:gone c:ok@PR""",
    "G2 in-place convert bypasses converter": """a+CR=a:ok@CR; b+NL=b:ok@NL; d+NL=d:ok@NL; b>EX=a:bast(EX);
        d>CR=d:ok@CR d:bast(EX); d-=d:gone; a-=a:gone b:ok@EX""",
    "G3 same with QUECVT": """a+CR=a:ok@CR; b+NL=b:ok@NL; d+NL=d:ok@NL; b>EX=a:bast(EX); d>CR QUECVT=;
        a-=a:gone b:ok@EX b:bast(CR); b-=b:gone d:ok@CR""",
    "G4 EXPEDITE": """a+EX=a:ok@EX; b+PR=a:bast(PR); d+NL=; e+NL EXPEDITE=e:ok@NL""",
    "G5 conversion deadlock": """a+PR=a:ok@PR; b+PR=b:ok@PR; a>EX=b:bast(EX); b>EX=b:deadlock;
        b-=b:gone a:ok@EX""",
    "G6 second form": """a+NL=a:ok@NL; b+PR=b:ok@PR; z+PR=z:ok@PR; a>EX=b:bast(EX) z:bast(EX); b>EX=b:deadlock""",
    "G7 CONVDEADLK": """a+PR=a:ok@PR; b+PR=b:ok@PR; a>EX=b:bast(EX); b>EX CONVDEADLK=a:ok@EX a:bast(EX);
        a-=a:gone b:ok@EX+DEMOTED; b>CR=b:ok@CR""",
    "G8 NODLCKWT": """a+PR=a:ok@PR; b+PR=b:ok@PR; a>EX=b:bast(EX); b>EX NODLCKWT=; a!=a:canceled a:bast(EX);
        a-=a:gone b:ok@EX""",
    "G9 NOQUEUE convert": """a+PR=a:ok@PR; b+PR=b:ok@PR; a>EX NOQUEUE=a:again;
        a>EX NOQUEUE NOQUEUEBAST=a:again b:bast(EX); a>EX NOQUEUE NOQUEUEBAST=a:again; b-=b:gone;
        a>EX NOQUEUE=a:ok@EX""",
    "G10 NOQUEUEBAST request": """a+EX=a:ok@EX; b+PR NOQUEUE=b:again; b+PR NOQUEUE NOQUEUEBAST=b:again a:bast(PR);
        c+PR NOQUEUE NOQUEUEBAST=c:again; d+EX=a:bast(EX)""",
    "G11 escalation": """a+EX=a:ok@EX; b+CR=a:bast(CR); c+PR=a:bast(PR); d+EX=a:bast(EX); e+PW=;
        a>PR=a:ok@PR b:ok@CR c:ok@PR a:bast(EX) b:bast(EX) c:bast(EX)""",
    "G12 PR/CW": """a+PR=a:ok@PR; b+CW=a:bast(CW); c+CW=~a:bast(CW); a>CR=a:ok@CR b:ok@CW c:ok@CW""",
    "G12 CW/PR": """a+CW=a:ok@CW; b+PR=a:bast(PR); c+PR=~a:bast(PR); d+EX=a:bast(EX); e+PR=;
        a-=a:gone b:ok@PR c:ok@PR b:bast(EX) c:bast(EX)""",
    "G13 middle conversion waits": """a+PR=a:ok@PR; b+PR=b:ok@PR; a>CW=b:bast(CW); b-=b:gone a:ok@CW""",
    "G14 two middle conversions": """a+PR=a:ok@PR; b+PR=b:ok@PR; a>CW=b:bast(CW); b>CW=b:deadlock""",
    "G15 HEADQUE": """a+EX=a:ok@EX; b+PR=a:bast(PR); c+EX HEADQUE=a:bast(EX); a-=a:gone c:ok@EX c:bast(PR);
        c-=c:gone b:ok@PR""",
    "HEADQUE that fits is first already": """a+PR=a:ok@PR; b+EX=a:bast(EX); c+PR HEADQUE=c:ok@PR;
        a-=a:gone c:bast(EX); c-=c:gone b:ok@EX""",
    "G16 NOORDER": """a+PR=a:ok@PR; b+EX=a:bast(EX); c+PR NOORDER=c:ok@PR; a-=a:gone c:bast(EX);
        c-=c:gone b:ok@EX""",
    "Q7 NOORDER overtakes from the queue": """a+EX=a:ok@EX; b+EX=a:bast(EX); c+PR NOORDER=; d+CR=;
        a>PR=a:ok@PR c:ok@PR a:bast(EX) c:bast(EX)""",
    "G17 ALTPR": """a+PR=a:ok@PR; b+EX ALTPR=b:ok@PR+ALTMODE; d+CW ALTPR=d:ok@PR+ALTMODE; b>PR=b:ok@PR""",
    "G17 behind another": """a+CW=a:ok@CW; b+EX ALTPR=a:bast(EX); c+EX ALTCW=;
        a>CR=a:ok@CR b:ok@PR+ALTMODE a:bast(EX) b:bast(EX); b-=b:gone c:ok@CW+ALTMODE""",
    "G17 ALTCW": """a+CW=a:ok@CW; c+EX ALTCW=c:ok@CW+ALTMODE; d+PW ALTPR ALTCW=d:ok@CW+ALTMODE""",
    "ALTCW instead of PR": """a+CW=a:ok@CW; b+NL=b:ok@NL; b>PR ALTPR ALTCW=b:ok@CW+ALTMODE""",
    "G19 cancel unblocks": """a+PR=a:ok@PR; b+EX=a:bast(EX); c+PR=; b!=b:canceled c:ok@PR""",
    "G20 cancel convert": """a+CR=a:ok@CR; b+CR=b:ok@CR; a>EX=b:bast(EX); d+CR=; a!=a:canceled d:ok@CR""",
    "G21 convert beats wait": """a+EX=a:ok@EX; b+NL=b:ok@NL; c+PR=a:bast(PR); b>EX=a:bast(EX);
        a-=a:gone b:ok@EX b:bast(PR); b-=b:gone c:ok@PR""",
    "G22 waits behind a converter": """a+CR=a:ok@CR; b+NL=b:ok@NL; b>EX=a:bast(EX); c+CR=;
        a-=a:gone b:ok@EX b:bast(CR)""",
    "G23 upgrade jumps waiter": """a+PR=a:ok@PR; b+EX=a:bast(EX); a>EX=a:ok@EX a:bast(EX)""",
    "G24 NOQUEUE is fair too": """a+PR=a:ok@PR; b+EX=a:bast(EX); c+PR NOQUEUE=c:again""",
    "G25 converter not told": """a+PR=a:ok@PR; b+PR=b:ok@PR; a>PW=b:bast(PW); c+EX=b:bast(EX);
        b-=b:gone a:ok@PW a:bast(EX); a-=a:gone c:ok@EX""",
    "G26 same-mode convert": """a+PR=a:ok@PR; b+EX=a:bast(EX); a>PR=a:ok@PR a:bast(EX)""",
    "G27 down-convert": """a+EX=a:ok@EX; b+PR=a:bast(PR); c+PR=; d+PW=a:bast(PW);
        a>CR=a:ok@CR b:ok@PR c:ok@PR b:bast(PW) c:bast(PW)""",
    "G28 FIFO of converts": """a+CR=a:ok@CR; b+NL=b:ok@NL; d+NL=d:ok@NL; e+NL=e:ok@NL; b>EX=a:bast(EX);
        d>PW QUECVT=; e>CR QUECVT=; a-=a:gone b:ok@EX b:bast(PW); b>CR=b:ok@CR d:ok@PW e:ok@CR""",
    "G29 NOQUEUEBAST reaches converters": """a+PR=a:ok@PR; b+PR=b:ok@PR; z+CR=z:ok@CR;
        a>EX=b:bast(EX) z:bast(EX); n+EX NOQUEUE NOQUEUEBAST=n:again a:bast(EX)""",
    "G30 HEADQUE conversion": """z+PR=z:ok@PR; x+PR=x:ok@PR; c+NL=c:ok@NL; x>PW=z:bast(PW);
        c>EX HEADQUE=c:deadlock; z-=z:gone x:ok@PW""",
    "G30 by tail insertion": """z+PR=z:ok@PR; x+PR=x:ok@PR; c+NL=c:ok@NL; x>PW=z:bast(PW); c>EX=z:bast(EX);
        z-=z:gone x:ok@PW x:bast(EX)""",
    "G30 CONVDEADLK": """z+PR=z:ok@PR; x+PR=x:ok@PR; c+NL=c:ok@NL; x>PW CONVDEADLK=z:bast(PW);
        c>EX HEADQUE=z:bast(EX); z-=z:gone c:ok@EX c:bast(PW); c-=c:gone x:ok@PW+DEMOTED""",
    "CONVDEADLK, then cancelled": """a+PR=a:ok@PR; b+PR=b:ok@PR; a>EX=b:bast(EX);
        b>EX CONVDEADLK=a:ok@EX a:bast(EX); b!=b:canceled+DEMOTED; b>NL=b:ok@NL""",
    "Q14 of the handbook": """1+PW=1:ok@PW; 2+NL=2:ok@NL; 3+NL=3:ok@NL; 4+NL=4:ok@NL; 2>EX=1:bast(EX);
        3>PW QUECVT=; 4>CR QUECVT=; 5+CR=; 6+PR=; 7+CR=; 1>CR=1:ok@CR 1:bast(EX);
        1-=1:gone 2:ok@EX 2:bast(PW); 2>NL=2:ok@NL 3:ok@PW 4:ok@CR 5:ok@CR 3:bast(PR);
        4-=4:gone; 5-=5:gone; 3-=3:gone 6:ok@PR 7:ok@CR""",
    "U3 cancel after the grant": """a+EX=a:ok@EX; a!=; a-=a:gone""",
    "S3 one operation at a time": """a+PR=a:ok@PR; b+PR=b:ok@PR; a>EX=b:bast(EX); a>PR=a:busy""",
    "NODLCKBLK has no effect": """a+PR=a:ok@PR; b+PR NODLCKBLK=b:ok@PR; a>EX=b:bast(EX);
        b>EX NODLCKBLK=b:deadlock""",
}


# Value blocks: (step, who is told something, what it reads, and whether that is valid); None: nothing is read.
VALUES: dict[str, list[tuple[str, str, bytes | None, bool]]] = {
    "G31": [
        ("k+NL", "", None, True),
        ("a+EX VALBLK", "a", b"", True),
        ('a>NL VALBLK "v1"', "a", None, True),
        ("b+PR VALBLK", "b", b"v1", True),
        ("a>EX VALBLK", "", None, True),
        ("b-", "a", b"v1", True),
        ("a*", "", None, True),
        ("b+CR VALBLK", "b", b"v1", False),
        ("c+PW VALBLK", "c", b"v1", False),
        ('c>PR VALBLK "v2"', "c", None, True),
        ("d+CR VALBLK", "d", b"v2", True),
    ],
    "G32": [
        ("k+NL", "", None, True),
        ("a+PW VALBLK", "a", b"", True),
        ("a>EX VALBLK", "a", b"", True),
        ('a>EX VALBLK "w"', "a", None, True),
        ("a>PW IVVALBLK", "a", None, True),
        ("b+NL VALBLK", "b", b"w", False),
        ("a-", "", None, True),
        ("b>EX VALBLK", "b", b"w", False),
        ('b>NL VALBLK "v3"', "b", None, True),
        ("k>CR VALBLK", "k", b"v3", True),
    ],
    "G33": [
        ("a+EX VALBLK", "a", b"", True),
        ('a- VALBLK "v"', "", None, True),
        ("b+EX VALBLK", "b", b"", True),
    ],
}


def steps(script: str) -> list[tuple[str, list[str]]]:
    """(step, effects) in order."""
    found = []
    for line in script.split(";"):
        step, _, effects = line.strip().partition("=")
        found.append((step, effects.split()))
    return found
