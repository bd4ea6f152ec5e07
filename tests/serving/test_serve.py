"""`nlp-mtl serve`, as a process: its address, its end, and many clients."""

import resource
import signal
import socket
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
from answers import assert_alike
from serving_process import Server, started
from serving_thread import tiny_predictor
from tiny import tokenizer

from nlp_mtl import RunError, load
from nlp_mtl.cli import main
from nlp_mtl.serving.server import address, bound, serve
from nlp_mtl.serving.settings import Settings


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served") / "tiny"
    tiny_predictor().model.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_a_served_model_answers_as_it_does_in_python_and_sigterm_ends_it_when_all_is_answered(
    model_folder: Path,
) -> None:
    with started(model_folder, "--threads", "1") as server:
        assert server.url.startswith("http://127.0.0.1:")
        texts = ["anna loves rome .", "", "bob " * 100]
        assert_alike(server.post(texts).json()["predictions"], load(model_folder, threads=1)(texts))

        with ThreadPoolExecutor(1) as pool:
            late = pool.submit(server.post, ["anna loves the good film of acme . " * 20] * 900)
            while "nlp_mtl_waiting_texts 0.0" in httpx.get(f"{server.url}/metrics").text and not late.done():
                time.sleep(0.01)
            server.process.send_signal(signal.SIGTERM)
            assert len(late.result().json()["predictions"]) == 900
        assert server.process.wait(30) == 0
        output, errors = server.process.communicate()
        assert "anna" not in output + errors
        assert errors == "Answering what was asked (requests: 1); a second signal ends at once\n"
        with pytest.raises(httpx.ConnectError):
            server.post("anna")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_ends_it_at_once(model_folder: Path, number: signal.Signals) -> None:
    with started(model_folder, "--threads", "1") as server, ThreadPoolExecutor(1) as pool:
        late = pool.submit(server.post, ["anna loves the good film of acme . " * 30] * 900)
        while "nlp_mtl_waiting_texts 0.0" in httpx.get(f"{server.url}/metrics").text:
            time.sleep(0.01)
        for _ in range(2):
            server.process.send_signal(number)
            time.sleep(0.1)
        assert server.process.wait(10) == 128 + number
        assert isinstance(late.exception(), httpx.HTTPError)
        assert "Traceback" not in server.process.communicate()[1]


@pytest.mark.slow
def test_ctrl_c_ends_it_and_nothing_of_what_was_asked_is_in_its_output(model_folder: Path) -> None:
    with started(model_folder, NLP_MTL_TOKEN="secret") as server:
        assert server.post("anna").status_code == 401
        assert httpx.get(f"{server.url}/health").status_code == 200  # by then the refused body was read
        server.process.send_signal(signal.SIGINT)
        output, errors = server.process.communicate(timeout=30)
        assert server.process.returncode == 130
        assert errors == "nlp-mtl: stopped\n"
        assert "secret" not in output


@pytest.mark.slow
def test_a_thousand_clients_are_answered_or_told_to_come_again_and_memory_returns(model_folder: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    with started(model_folder, "--max-queue", "500") as server:
        process = psutil.Process(server.process.pid)
        held = []
        for _ in range(5):
            statuses = _thousand_at_once(server)
            assert {*statuses} <= {200, 429}
            assert statuses.count(200) >= 100
            assert server.post("anna").status_code == 200
            held.append(process.memory_info().rss)
        assert held[4] - held[1] < 20 * 2**20  # three rounds of bodies are 60 MB


def _thousand_at_once(server: Server) -> list[int]:
    """The statuses of 900 clients; a hundred others leave."""
    host, port = server.url.removeprefix("http://").split(":")
    body = b'{"texts": "anna loves the good film of acme"}'.ljust(20_000)
    head = (
        b"POST /predict HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n"
        b"content-length: %d\r\n\r\n" % len(body)
    )
    clients = [socket.create_connection((host, int(port)), timeout=60) for _ in range(1000)]
    for client in clients[::2]:  # half of them are slow
        client.sendall(head)
    for client in clients[1::2]:
        client.sendall(head + body)
    for client in clients[::2]:
        client.sendall(body)
    for client in clients[900:]:
        client.close()
    return [_status(client) for client in clients[:900]]


def _status(client: socket.socket) -> int:
    answer = b""
    while part := client.recv(65_536):
        answer += part
    client.close()
    status = int(answer.split()[1])
    assert status != 200 or b'{"predictions": {"ner"' in answer
    return status


def test_a_port_that_is_taken_is_told(model_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other, pytest.raises(SystemExit) as ended:
        main(["serve", "no/model", "--port", str(other.getsockname()[1])])
    assert ended.value.code == 2
    assert "cannot serve on 127.0.0.1, port" in capsys.readouterr().err  # and nothing was loaded before


def test_a_port_that_another_took_while_the_model_was_loaded_is_told() -> None:
    with bound("127.0.0.1", 0) as listener, bound("127.0.0.1", listener.getsockname()[1]) as other:
        other.listen()
        with pytest.raises(RunError, match=r"cannot serve on 127\.0\.0\.1, port \d+: .* Choose others"):
            serve(tiny_predictor(), Settings(), listener)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_an_address_has_a_socket_whose_answers_do_not_wait_for_more(host: str) -> None:
    with bound(host, 0) as listener:
        listener.listen()
        assert listener.proto == socket.IPPROTO_TCP  # by which asyncio sets TCP_NODELAY: 40 ms a request otherwise
        with socket.create_connection(listener.getsockname()[:2]):
            assert address(listener, host).startswith("http://[::1]:" if host == "::1" else f"http://{host}:")


@pytest.mark.parametrize("host", ["no.such.host.invalid", "a" * 300, "999.1.1.1", "192.0.2.1"])
def test_an_address_that_is_not_ours_is_told(host: str) -> None:
    with pytest.raises(RunError, match=r"cannot serve on .* Choose others with --host and --port"):
        bound(host, 0)


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"\xff", "pässwort".encode()])
def test_a_token_that_cannot_be_sent_is_refused(
    tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "token").write_bytes(content)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "anything", "--token-file", str(tmp_path / "token")])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert str(tmp_path / "token") in error
    assert "words" not in error.split(str(tmp_path / "token"))[1].replace("without spaces", "")


def test_a_missing_package_is_told_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(SystemExit) as ended:
        main(["serve", "anything"])
    assert ended.value.code == 2
    assert "pip install 'nlp_mtl[serve]'" in capsys.readouterr().err


def test_an_address_for_all_without_a_token_is_told(
    model_folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nlp_mtl.serving.server.serve", lambda *_, **__: None)
    main_without_exit("serve", str(model_folder), "--host", "0.0.0.0")
    assert "whoever reaches 0.0.0.0 can ask this server" in capsys.readouterr().err
    main_without_exit("serve", str(model_folder), "--host", "localhost")
    assert "whoever" not in capsys.readouterr().err


def main_without_exit(*arguments: str) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*arguments])
    assert not ended.value.code
