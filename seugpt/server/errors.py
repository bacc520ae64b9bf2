"""What a client is told when a request fails, in the shape of OpenAI's API."""

from starlette.responses import JSONResponse


class ApiError(Exception):
    """A request that fails. `param`: the field of the request that is wrong, if it is one."""

    def __init__(self, status, message, param=None, code=None, headers=None):
        super().__init__(message)
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.headers = headers

    def content(self):
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self):
        return JSONResponse(self.content(), self.status, self.headers)


def busy_error(message):
    return ApiError(503, message, code="overloaded", headers={"Retry-After": "1"})
