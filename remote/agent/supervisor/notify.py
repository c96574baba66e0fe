"""Tells a webhook that a run has ended. Never harms a run, and never shows the address, which is a
secret."""

import json
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any, Dict, Tuple

from remote.agent.shared.run_records import Asked, RunDetail

TIMEOUT_S = 10.0
PAUSES_S = (0.0, 2.0, 10.0)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """An address that is a secret is not handed on."""

    def redirect_request(self, *arguments: Any) -> None:
        return None


def post(address: str, facts: Dict[str, Any]) -> str:
    """`sent`, or why not, without the address."""
    problem = "no address"
    for pause in PAUSES_S:
        time.sleep(pause)
        try:
            body, headers = message_for(address, facts)
            request = urllib.request.Request(address, body, headers, method="POST")
            with urllib.request.build_opener(_NoRedirect).open(
                request, timeout=TIMEOUT_S
            ) as answer:
                answer.read(1000)
            return "sent"
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}"
            if error.code < 500 and error.code != 429:
                break
        except urllib.error.URLError as error:
            problem = (
                type(error.reason).__name__
                if isinstance(error.reason, Exception)
                else "no connection"
            )
        except Exception as error:  # whatever a strange address or server makes of it
            problem = type(error).__name__
    return f"failed: {problem}"


def message_for(address: str, facts: Dict[str, Any]) -> Tuple[bytes, Dict[str, str]]:
    """The body that this service takes: chat services want a text in a form of their own, others
    get all facts as JSON."""
    host = (urllib.parse.urlsplit(address).hostname or "").lower()
    text = str(facts["text"])
    if host.startswith("ntfy."):
        return text.encode(), {"Title": "Training", "Content-Type": "text/plain; charset=utf-8"}
    if host.endswith(("feishu.cn", "larksuite.com")):
        body: Dict[str, Any] = {"msg_type": "text", "content": {"text": text}}
    elif host.endswith(("weixin.qq.com", "dingtalk.com")):
        body = {"msgtype": "text", "text": {"content": text}}
    elif host.endswith("discord.com"):
        body = {"content": text}
    elif host.endswith("slack.com"):
        body = {"text": text}
    else:
        body = facts
    return json.dumps(body).encode(), {"Content-Type": "application/json"}


def facts_of(run: str, asked: Asked, state: RunDetail, summary: Dict[str, Any]) -> Dict[str, Any]:
    accuracy = summary.get("test_accuracy")
    shown = f", test accuracy {100 * accuracy:.2f}%" if isinstance(accuracy, float) else ""
    reason = f": {state.reason}" if state.reason else ""
    return {
        "run": run,
        "name": asked.name,
        "state": state.state,
        "reason": state.reason,
        "test_accuracy": accuracy,
        "host": state.host,
        "ended": state.ended,
        "text": f"{run} {state.state}{shown}{reason} ({state.host})",
    }
