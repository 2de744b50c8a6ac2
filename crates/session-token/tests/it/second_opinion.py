"""Judges session tokens by PyJWT: one token a line in, one verdict a line out.

Arguments: the key set's file, issuer, audience, the present in seconds, the
leeway and the longest life. PyJWT is told what Berth expects and nothing more;
that it is told so is itself the point, as it accepts much else by default.
"""

import datetime
import json
import sys

import jwt
from jwt import api_jwt

key_set, issuer, audience, now, leeway, longest = sys.argv[1:]
now, leeway, longest = int(now), int(leeway), int(longest)
with open(key_set, encoding="utf-8") as file:
    keys = {key["kid"]: jwt.PyJWK(key).key for key in json.load(file)["keys"]}


class Present(datetime.datetime):
    """The present that both judges are told."""

    @classmethod
    def now(cls, tz=None):
        return datetime.datetime.fromtimestamp(now, tz)


api_jwt.datetime = Present
CLAIMS = ["iss", "aud", "sub", "org", "sid", "epoch", "iat", "nbf", "exp", "jti"]


def judge(token):
    header = jwt.get_unverified_header(token)
    if header.get("typ") != "berth-session+jwt":
        raise jwt.InvalidTokenError("another typ")
    key = keys.get(header.get("kid"))
    if key is None:
        raise jwt.InvalidTokenError("unknown key")
    claims = jwt.decode(
        token,
        key,
        algorithms=["ES256"],
        issuer=issuer,
        audience=audience,
        leeway=leeway,
        options={"require": CLAIMS, "strict_aud": True},
    )
    if claims["exp"] - claims["iat"] > longest:
        raise jwt.InvalidTokenError("too long a life")
    return claims


for line in sys.stdin:
    try:
        claims = judge(json.loads(line))
        verdict = {"good": True, "claims": claims}
    except Exception as error:  # whatever it stumbles over, it did not accept
        verdict = {"good": False, "why": f"{type(error).__name__}: {error}"[:200]}
    print(json.dumps(verdict))
