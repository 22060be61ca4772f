module yinian

go 1.19
