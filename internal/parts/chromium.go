package parts

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
)

// Chromium is a browser with the environment variables that it needs.
type Chromium struct {
	Path string
	Env  []string // NAME=VALUE
}

// FindChromium returns a Chromium: $CHROMIUM, else one on PATH, else the one "make tools"
// installed. A *MissingError means there is none.
func FindChromium() (Chromium, error) {
	if path := os.Getenv("CHROMIUM"); path != "" {
		if !isProgram(path) {
			return Chromium{}, fmt.Errorf("CHROMIUM=%s is not a program", path)
		}
		return Chromium{Path: path}, nil
	}
	for _, name := range []string{"chromium", "chromium-headless-shell", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return Chromium{Path: path}, nil
		}
	}
	dir := tool("chromium")
	if path := filepath.Join(dir, "chromium"); dir != "" && isProgram(path) {
		return Chromium{Path: path, Env: []string{
			"LD_LIBRARY_PATH=" + filepath.Join(dir, "lib") + ":" + dir, "FONTCONFIG_FILE=" + filepath.Join(dir, "fonts.conf"),
		}}, nil
	}
	return Chromium{}, &MissingError{Part: "Chromium", Env: "CHROMIUM"}
}

// FindAxe returns the path of axe.min.js, the accessibility checker: $AXE, else the one "make
// tools" installed. A *MissingError means there is none.
func FindAxe() (string, error) {
	path := os.Getenv("AXE")
	if dir := tool("axe-core"); path == "" && dir != "" {
		path = filepath.Join(dir, "axe.min.js")
	}
	if path == "" {
		return "", &MissingError{Part: "axe-core", Env: "AXE"}
	}
	return path, nil
}

// tool returns a file or folder that "make tools" installed in .tools, or "".
func tool(name string) string {
	root := checkout()
	if root == "" {
		return ""
	}
	dir := filepath.Join(root, ".tools", name)
	if _, err := os.Stat(dir); err != nil {
		return ""
	}
	return dir
}
