"""What leaves the machine: no personal data, and no secret that its name betrays; and code stays what it is."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import KIT

import log
import personal


@pytest.fixture(autouse=True)
def forget(fresh_mask) -> None:
    """Each test begins with a mask that knows no secret."""


@pytest.fixture
def own_names(monkeypatch) -> Iterator[Any]:
    """Let this machine have a login, a host name and a home folder, as the system tells them."""

    def be(login: str, host: str, home: str = "/nowhere") -> None:
        monkeypatch.setattr("pwd.getpwuid", lambda uid: (login, "x", uid, uid, "", home, "/bin/sh"))
        monkeypatch.setattr("socket.gethostname", lambda: host)
        monkeypatch.setenv("HOME", home)
        personal._own_names.cache_clear()

    be("root", "localhost")
    yield be
    personal._own_names.cache_clear()


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("ada@firm.de", "[email]"),
        ("Ada <ada.lovelace+x@mail.firm.co.uk>, hello.", "Ada <[email]>, hello."),
        ("m\u00fcller@b\u00fcro.de.", "[email]."),
        ("mailto:ada@firm.de?x", "mailto:[email]?x"),
        ("1234+ada@users.noreply.github.com", "[email]"),
        ("ada@firm.de: see docs/x", "[email]: see docs/x"),
        ("tel:+49 170 1234567", "tel:[phone]"),
        ("+49 (0)170 123 45 67.", "[phone]."),
        ("call +1 (555) 234-5678!", "call [phone]!"),
        ("+491701234567\n+12025550123", "[phone]\n[phone]"),
        ("4111 1111 1111 1111 and 5500-0000-0000-0004", "[card] and [card]"),
        ('"4111111111111111", 378282246310005', '"[card]", [card]'),
        ("DE89370400440532013000.", "[iban]."),
        ("DE89 3704 0044 0532 0130 00 IS THE ACCOUNT", "[iban] IS THE ACCOUNT"),
        ("GB82 WEST 1234 5698 7654 32", "[iban]"),
        ("/home/ada/app/x.py:3: no", "~/app/x.py:3: no"),
        ("cc -I/home/ada/inc file:///Users/bob/x", "cc -I~/inc file://~/x"),
        ("C:\\Users\\Ada Lovelace\\app D:/Users/ada", "~\\app ~"),
        ('{"at": "C:\\\\Users\\\\ada\\\\app"}', '{"at": "~\\\\app"}'),
        ("from 93.184.216.34:51234 to http://142.250.74.110/x", "from [address]:51234 to http://[address]/x"),
        ("[2606:4700::1111]:443, 2a00:1450:4001:82b::200e", "[[address]]:443, [address]"),
    ],
)
def test_personal_data_is_named_instead(own_names, text, masked):
    assert personal.mask(text) == masked


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("DB_PASSWORD=hunter22pass", "DB_PASSWORD=***"),
        ("export API_TOKEN=9f8e7d6c5b4a3210 && run", "export API_TOKEN=*** && run"),
        ("-API_KEY=abc123def456\n+API_KEY=abc123def457", "-API_KEY=***\n+API_KEY=***"),
        ("PASSWORD=Pa$$w0rd;&,)x", "PASSWORD=***"),
        ("DB_PASSWORD=correcthorsebattery POSTGRES_PASSWORD=four-words", "DB_PASSWORD=*** POSTGRES_PASSWORD=***"),
        ("SECRET_KEY=kjhfdKJHdfkjhKJ", "SECRET_KEY=***"),
        ('docker run -e "DB_PASSWORD=hunter22pass" image', 'docker run -e "DB_PASSWORD=***" image'),
        ('"client_secret": "a8Qx-77lmPzR2"', '"client_secret": "***"'),
        ('{"clientSecret":"a8Qx77lmPzR2","id":1}', '{"clientSecret":"***","id":1}'),
        (r"{\"password\": \"hunter22pass\"}", r"{\"password\": \"***\"}"),
        (
            "aws_secret_access_key = wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
            "aws_secret_access_key = ***",
        ),
        ("  password: hunter22pass\n  user: ada1843byron", "  password: ***\n  user: ada1843byron"),
        ("password: hunter22", "password: ***"),
        ("passwd: 12345678", "passwd: ***"),
        ("spring.datasource.password=Tr0ub4dor&3", "spring.datasource.password=***"),
        ("Server=db;User Id=sa;Password=Hunter22pass;Encrypt=true", "Server=db;User Id=sa;Password=***;Encrypt=true"),
        ("https://x.org/?api_key=abc123def456&page=2", "https://x.org/?api_key=***&page=2"),
        ("//registry.npmjs.org/:_authToken=3f1c9a7e-aaaa-bbbb", "//registry.npmjs.org/:_authToken=***"),
        ("x-api-key: 0123456789abcdef", "x-api-key: ***"),
        ("AccountKey=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsu+UVErCz4==;", "AccountKey=***;"),
        ("private_key: MIIEvQIBADANBgkqhkiG9w0BAQEFAASC", "private_key: ***"),
        ("token: 9f8e7d6c5b4a32109f8e7d6c5b4a3210", "token: ***"),
        ("NPM_TOKEN=abcdef01234567", "NPM_TOKEN=***"),
        ('{"auths": {"x": {"auth": "dXNlcjpwYXNzMTIzNDU2"}}}', '{"auths": {"x": {"auth": "***"}}}'),
        ('os.environ["DB_PASSWORD"] = "hunter22pass"', 'os.environ["DB_PASSWORD"] = "***"'),
        ("'password' => 'hunter22pass',", "'password' => '***',"),
        ('password: str = "hunter22pass"', 'password: str = "***"'),
        ("const apiKey: string = 'k3yk3yk3yABC';", "const apiKey: string = '***';"),
        ('let token: &str = b"abc123def456";', 'let token: &str = b"***";'),
        ('if password == "hunter22pass":', 'if password == "***":'),
        ('login(user, password="p@ss!word")', 'login(user, password="***")'),
        ('password = "correct-horse-battery-staple"', 'password = "***"'),
        ('secret := "a\\d22pass\\x"', 'secret := "***"'),
        ("password: ada1@firm.de", "password: ***"),
    ],
)
def test_what_follows_the_name_of_a_secret_is_masked_where_it_looks_like_one(own_names, text, masked):
    assert personal.mask(text) == masked
    assert personal.mask(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "password = get_password()\ntoken: str\ntoken=None\nmax_tokens=4096",
        "if key == other1234: pass\nkey != other1234 key >= other1234 key === other1234",
        "password: Optional[str] = None\ntoken = tokens[index1]\nkey=lambda item1: item1",
        "password = settings.DATABASE_PASSWORD_2\npassword=self._password1, token=args.token1234",
        'token = request.headers.get("X-Auth2") or os.environ["KEY2"]',
        "secret: Uint8Array, key: uint64_t, key = sha256_digest, auth = OAuth2Session",
        "password=password2, accessToken: AccessTokenV2, accessToken: CancellationToken",
        "private_key = ed25519.Ed25519PrivateKey\nconst apiKey = process.env.API_KEY2",
        "token = generate_token_v2()\nsecret = hash(secret2,3)\nTOKEN=foo1bar2(x)",
        '"token": "string", "password": "password", "key": "user_id", "password": "reset-password-link"',
        "'api_key': 'apiKeyOfTheUser', secret_name: my-secret-name1, secret_id=0123456789abcdef",
        "password: ${DB_PASSWORD2}\npassword: {{ vault2 }}\nTOKEN=$CI_JOB_TOKEN2\nTOKEN=$(cat token22)",
        'token = f"{prefix1}.{middle}"\nkey = "%(name1)s.1234"\npassword="<password1>"\nAPI_KEY=your-key-1',
        "PASSWORD_FILE=/run/secrets/db_password2\ntoken: ./token22.txt\nkey=~/keys/key22",
        "auth: https://auth.example.org/oauth2/x1",
        "MAX_THINKING_TOKENS=31999000\ntokens: 12345678\nkey = 0x12345678\n'key': '2026-11-27T10:00Z'",
        'key: "item-1234", cache_key="user:1234"\nSORT_KEY=created_at2\nPRIMARY_KEY=user_id2',
        "password_reset_token_expires_in = 3600000000",
        "keyword=hunter22pass author: ada1843byron KEYBOARD=pc105layout2 compass=n0rth2south",
        "PASS: test_login_v2_works\nsecrets: inherit\nkey::value1234 keys=short",
    ],
)
def test_code_and_words_after_the_name_of_a_secret_stay(own_names, text):
    assert personal.mask(text) == text


def test_what_follows_the_name_of_a_secret_is_masked_only_where_it_leaves_the_machine():
    assert log.mask("DB_PASSWORD=hunter22pass") == "DB_PASSWORD=hunter22pass"


def test_no_file_of_the_kit_itself_holds_what_looks_like_the_value_of_a_secret(own_names):
    for path in (*KIT.glob("*.py"), *KIT.glob("prompts/*"), *KIT.glob("schema/*"), KIT / "Makefile", KIT / "README.md"):
        text = path.read_text("utf-8")
        assert personal.NAMED.sub(personal._without_value, text) == text, path


@pytest.mark.parametrize(
    "text",
    [
        "me@example.com a@b.example.org x@y.invalid z@host.test root@vm.local",
        "git@github.com:owner/name.git ssh://git@host.net/x https://ada@git.firm.com/x",
        "deploy@srv.firm.com:/srv/app.git deploy@srv.firm.com:app/x.git noreply@anthropic.com",
        "@app.get('/x')\n@pytest.mark.skip @types/node @babel/core@7.23.0-beta.rc",
        "golang.org/x/tools@v0.1.0-alpha.beta logo@2x.png getty@tty1.service actions/checkout@v4",
        "0d5bb0ea6c1f1e1d9d1f3c3e9c6e7a8b9c0d1e2f 4111111111111111111111111111111111111111",
        "0ccb0c9e-4f5d-4b0c-9d3c-2f8f6d1f2a10 12345678-4111-1111-1111-111111111111",
        "2026-11-27T12:34:56.789+01:00 20261127123456 2026:11:27 12:00 +0200",
        "1732745760 1732745760123 1732745760123456 1732745760123456789",
        "@@ -1,5 +1,7 @@\n+1732745760\n+2026-11-27 12:34:56\n+1.2.3",
        "0.4111111111111111 4111111111111111.25 4111111111111112",
        "1.2.3 1.2.3.4 10.0.19041.1 1.2.3.104 120.0.6099.1 Chrome/120.0.0.0 a==1.200.3.4 v1.200.3.4 version 1.200.3.4",
        "127.0.0.1 10.0.0.200 172.16.254.1 192.168.178.20 169.254.169.254 203.0.113.9 255.255.255.255 8.8.8.8",
        "::1 fe80::1 2001:db8::1 std::vector 12:34:56 00:1a:2b:3c:4d:5e",
        "DE89370400440532013001 AB12 CDEF GHIJ KLMN HTTP/1.1 SHA256 US-ASCII",
        "https://example.org/home/about /mnt/home/x ~/home/x /home/$USER/x /homes/ada",
        "+49 call 1+491701234567 a+491701234567 1 + 4917012345678",
    ],
)
def test_what_only_resembles_personal_data_stays(own_names, text):
    assert personal.mask(text) == text


def test_the_names_of_this_machine_and_of_who_uses_it_are_masked(own_names):
    own_names("lovelace", "engine.firm.lan", "/data/lovelace")
    said = "lovelace@engine: /data/lovelace/app, -home-lovelace-app, engine.firm.lan; lovelaces, engineer, /data/x"
    assert personal.mask(said) == "[user]@[host]: ~/app, -home-[user]-app, [host]; lovelaces, engineer, /data/x"


@pytest.mark.parametrize("name", ["root", "user", "admin", "ubuntu", "runner", "ada", "mark", "github-runner", "4711"])
def test_a_name_that_names_nobody_stays(own_names, name):
    own_names(name, name, f"/data/{name}")
    said = f"{name} may not read /data/{name}/app on {name}"
    assert personal.mask(said) == said


def test_a_machine_that_knows_no_login_masks_all_the_same(own_names, monkeypatch):
    def nobody(uid: int) -> None:
        raise KeyError(uid)

    monkeypatch.setattr("pwd.getpwuid", nobody)
    personal._own_names.cache_clear()
    assert personal.mask("ada@firm.de") == "[email]"


PERSONAL = [
    "ada@firm.de",
    "4111 1111 1111 1111",
    "4111111111111111",
    "+49 170 1234567",
    "+4917012345678",
    "93.184.216.34",
]
PERSONAL += ["DE89 3704 0044 0532 0130 00", "DE89370400440532013000", "/home/ada", "C:\\Users\\x", "lovelace", "engine"]
AMONG = [
    "git@github.com",
    "@",
    " ",
    "\n",
    "-",
    "+",
    ".",
    "/",
    ":",
    "1",
    "22",
    "AB",
    "2026",
    "[email]",
    "~",
    "a",
    "(0)",
    "\u00e4",
]


@pytest.mark.parametrize("seed", range(4))
def test_masking_personal_data_twice_is_masking_it_once_and_adds_little(own_names, seed):
    own_names("lovelace", "engine", "/data/lovelace")
    dice = random.Random(seed)
    for _ in range(2000):
        text = "".join(dice.choice(dice.choice([PERSONAL, AMONG])) for _ in range(dice.randint(1, 8)))
        masked = personal.mask(text)
        assert personal.mask(masked) == masked
        assert len(masked) <= len(text) + 4 * len(re.findall(r"\[\w+\]|~", masked))


@pytest.mark.parametrize(
    "text",
    [
        "a" * 500_000,
        "a@" * 250_000,
        "a@b." + "b." * 250_000 + "1",
        "a@b.cd:" + "a/" * 250_000 + " ",
        "+49 170 " * 60_000,
        "+4917012345678" * 30_000,
        "1234 " * 100_000,
        "AB12 " * 100_000,
        "/home/" * 80_000,
        "C:\\Users\\" + "a " * 250_000,
        "1.2.3." * 80_000,
        "2001:" * 100_000,
        "key=" * 125_000,
        'key="' * 100_000,
        "key='\\" * 80_000,
        'key="' + "a" * 500_000,
        "password=" + "a1(" * 160_000,
        'secret="' + "{a1" * 160_000 + '"',
        "key" * 160_000 + "=",
        "key-." * 100_000,
        "token=" + "a1&b=" * 100_000,
    ],
    ids=lambda text: text[:8],
)
def test_masking_personal_data_takes_no_time_that_grows_out_of_hand(own_names, text):
    begun = time.process_time()
    personal.mask(text)
    assert time.process_time() - begun < 5


@pytest.mark.parametrize(
    "text",
    [
        "key: d41d8cd98f00b204e9800998ecf8427e",
        '{"key": "user:1234567890abcdef"}',
        '"token": "identifier_2name"',
        "sort_key: created_at2023desc_index_name",
        "pass=25000000 fail=0",
        "npm_packageManagerVersion1",
        "Bearer authentication2fallback",
    ],
)
def test_keys_of_caches_and_counts_of_tests_are_no_secrets(text):
    assert personal.mask(log.mask(text)) == text
