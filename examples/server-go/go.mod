module server-go

go 1.21

require yinian v0.0.0

replace yinian => ../../bindings/go
