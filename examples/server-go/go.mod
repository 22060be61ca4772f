module server-go

go 1.23

require yinian.ai/yinian v0.0.0

replace yinian.ai/yinian => ../../bindings/go
