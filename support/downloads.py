"""Downloads that leave either a complete file or none."""

import hashlib
import re
import urllib.error
import urllib.request
from http.client import HTTPException
from pathlib import Path

from tqdm import tqdm

from support.errors import input_errors
from support.files import replacing


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects. When redirecting to a large file, the hub sends the file's SHA-256 as X-Linked-ETag."""

    sha256 = None

    def redirect_request(self, request, response, code, message, headers, url):
        etag = headers.get("X-Linked-ETag", "").strip('"')
        self.sha256 = etag if re.fullmatch("[0-9a-f]{64}", etag) else self.sha256
        return super().redirect_request(request, response, code, message, headers, url)


def download(url: str, path: Path, sha256: str | None = None) -> bool:
    """Fetch a file, which appears complete or not at all. False: the server has no such file.

    Its length is checked, and so is its SHA-256 if one is given or the server sends one. (The downloader of torch.hub
    accepts half a file, and cannot see the checksums that the hub sends.)
    """
    redirects, digest = _Redirects(), hashlib.sha256()
    remedy = "check the network and the disk and try again, or give a directory that holds the files."
    problem = f"{url} could not be fetched into {path.parent}"
    with input_errors(problem, remedy, OSError, ValueError, HTTPException):
        try:
            response = urllib.request.build_opener(redirects).open(url, timeout=60)
        except urllib.error.HTTPError as error:
            if error.code == 404:
                return False
            raise
        path.parent.mkdir(parents=True, exist_ok=True)  # now that there is something to put there
        with response, replacing(path) as output:
            length = int(response.headers["Content-Length"] or 0)
            with tqdm(desc=path.name, total=length, unit="B", unit_scale=True, leave=False) as bar:
                while block := response.read(1 << 20):
                    digest.update(block)
                    bar.update(output.write(block))
            if length and output.tell() != length:
                raise OSError(f"the connection ended after {output.tell()} of {length} bytes")
            if (sha256 or redirects.sha256 or digest.hexdigest()) != digest.hexdigest():
                raise OSError("the SHA-256 of the download is not that of the file")
    return True
