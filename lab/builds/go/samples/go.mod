module underpass.dev/builds/samples

go 1.26.0

require (
	github.com/mccutchen/go-httpbin/v2 v2.15.0 // indirect
	istio.io/istio v0.0.0-20260827124520-eed52ebb66ad // indirect
)

tool (
	github.com/mccutchen/go-httpbin/v2/cmd/go-httpbin
	istio.io/istio/samples/tcp-echo/src
)
