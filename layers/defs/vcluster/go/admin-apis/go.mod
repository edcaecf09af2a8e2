module github.com/loft-sh/admin-apis

go 1.25
