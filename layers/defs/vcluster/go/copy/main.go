// The `cp -r FROM TO` of the chart's init container: nothing to do where TO is a volume of the image itself, else FROM's files and links go there.
package main

import (
	"log"
	"os"
	"path/filepath"
)

func main() {
	if len(os.Args) != 4 || os.Args[1] != "-r" {
		log.Fatalf("usage: %s -r FROM TO", os.Args[0])
	}
	if err := copy(os.Args[2], os.Args[3]); err != nil {
		log.Fatal(err)
	}
}

func copy(from, to string) error {
	if _, err := os.Stat(filepath.Join(to, "kube-scheduler")); err == nil {
		return nil
	}
	entries, err := os.ReadDir(from)
	if err != nil {
		return err
	}
	// A run that was cut off left some of them.
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(to, entry.Name())); err != nil {
			return err
		}
	}
	return os.CopyFS(to, os.DirFS(from))
}
