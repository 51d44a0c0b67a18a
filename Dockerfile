# syntax=docker/dockerfile:1
FROM golang:1.26 AS build
WORKDIR /src
COPY go.mod go.sum ./
RUN --mount=type=cache,target=/go/pkg/mod go mod download
COPY . .
RUN --mount=type=cache,target=/go/pkg/mod --mount=type=cache,target=/root/.cache/go-build \
    CGO_ENABLED=0 go build -trimpath -ldflags="-s -w" -o /out/keyporter ./cmd/keyporter
# The folder of the authorizer's socket: a volume mounted here inherits its owner.
RUN mkdir -p /out/run /out/seal

FROM gcr.io/distroless/static-debian12:nonroot
COPY --from=build /out/keyporter /usr/local/bin/keyporter
COPY --from=build --chown=nonroot:nonroot --chmod=0750 /out/run /run/keyporter
COPY --from=build --chown=nonroot:nonroot --chmod=0700 /out/seal /var/lib/keyporter/seal
USER nonroot:nonroot
HEALTHCHECK --interval=10s --timeout=4s --start-period=30s CMD ["keyporter", "healthcheck"]
ENTRYPOINT ["keyporter"]
CMD ["serve"]
