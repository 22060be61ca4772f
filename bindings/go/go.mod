module yinian.ai/yinian

go 1.23
