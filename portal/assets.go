package portal

import (
	"cmp"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"math"
	"mime"
	"path"
	"slices"
	"strconv"
	"strings"
)

//go:embed static
var staticFiles embed.FS

//go:embed openapi.yaml
var openAPI string // of a page at /api

// file is a static file.
type file struct {
	content     []byte
	contentType string
}

// brand is a Brand as the templates use it.
type brand struct {
	Name    string
	HasLogo bool
	Links   []Link
}

// logoTypes lists the accepted media types of a logo.
var logoTypes = []string{"image/svg+xml", "image/png"}

// defaultColor is the default colour of the brand.
const defaultColor = "#2f5bea"

// assets are the files that the page serves unchanged, and what its templates need of them.
type assets struct {
	static  map[string]file // name → file, served under addresses.Static
	version string          // of all static files together, part of their URLs
	brand   brand
	openAPI []byte
}

// loadAssets loads the files and generates those that depend on the configuration.
func loadAssets(b Brand, at addresses) (assets, error) {
	all := assets{static: map[string]file{}, openAPI: openAPIAt(at)}
	entries, err := staticFiles.ReadDir("static")
	if err != nil {
		return assets{}, err
	}
	for _, entry := range entries {
		content, err := staticFiles.ReadFile("static/" + entry.Name())
		if err != nil {
			return assets{}, err
		}
		all.static[entry.Name()] = file{content, mime.TypeByExtension(path.Ext(entry.Name()))}
	}
	color := cmp.Or(b.Color, defaultColor)
	css, err := brandCSS(color)
	if err != nil {
		return assets{}, err
	}
	all.static["brand.css"] = file{[]byte(css), "text/css; charset=utf-8"}
	all.static["icon.svg"] = file{[]byte(fmt.Sprintf(icon, color)), "image/svg+xml"}
	if b.Logo != nil {
		if !slices.Contains(logoTypes, b.LogoType) {
			return assets{}, fmt.Errorf("the logo is %s: want one of %s", b.LogoType, strings.Join(logoTypes, ", "))
		}
		all.static["logo"] = file{b.Logo, b.LogoType}
	}
	all.brand = brand{Name: cmp.Or(b.Name, "Keyporter"), HasLogo: b.Logo != nil, Links: b.Links}
	all.version = versionOf(all.static)
	return all, nil
}

// openAPIAt returns the OpenAPI file with the addresses of this page.
func openAPIAt(at addresses) []byte {
	shipped := addressesAt("")
	return []byte(strings.NewReplacer(
		shipped.Overview+":", at.Overview+":",
		shipped.Regenerate+":", at.Regenerate+":",
		shipped.Reveal, at.Reveal,
	).Replace(openAPI))
}

// versionOf returns a hash of all files.
func versionOf(files map[string]file) string {
	var names []string
	for name := range files {
		names = append(names, name)
	}
	slices.Sort(names)
	sum := sha256.New()
	for _, name := range names {
		fmt.Fprintf(sum, "%s %d\n", name, len(files[name].content))
		sum.Write(files[name].content)
	}
	return hex.EncodeToString(sum.Sum(nil)[:6])
}

const icon = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 32 32"><rect width="32" height="32" rx="7" fill="%s"/>` +
	`<path d="M20 6a6 6 0 0 0-5.7 7.9L6 22.2V26h4v-3h3v-3h2.4l1.7-1.7A6 6 0 1 0 20 6zm1.5 6a1.5 1.5 0 1 1 0-3 1.5 1.5 0 0 1 0 3z" fill="#fff"/></svg>`

// brandCSS sets the page's colour, and black or white for text on it, whichever has more contrast.
func brandCSS(color string) (string, error) {
	n, err := strconv.ParseUint(strings.TrimPrefix(color, "#"), 16, 32)
	if err != nil || len(color) != 7 || color[0] != '#' {
		return "", fmt.Errorf("the colour %q is not of the form #rrggbb", color)
	}
	on := "#fff"
	if l := luminance(n); (l+0.05)/0.05 > 1.05/(l+0.05) {
		on = "#000"
	}
	return fmt.Sprintf(":root { --brand: %s; --on-brand: %s; }\n", color, on), nil
}

// luminance returns the relative luminance of a colour, as defined by WCAG 2.
func luminance(rgb uint64) float64 {
	channel := func(shift int) float64 {
		c := float64(rgb>>shift&0xff) / 255
		if c <= 0.04045 {
			return c / 12.92
		}
		return math.Pow((c+0.055)/1.055, 2.4)
	}
	return 0.2126*channel(16) + 0.7152*channel(8) + 0.0722*channel(0)
}
